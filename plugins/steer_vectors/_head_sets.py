"""Sets of heads as masks (P,) over all heads of a model, one layer after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from steer.profiling import Means

Chosen = Mapping[int, tuple[list[int], torch.Tensor]]
"""By layer: some heads, and what replaces their results, (k, d_v)."""


def chosen(means: Means, mask: torch.Tensor) -> Chosen:
    """The heads of a set (P,), layer by layer; layers without any are left out."""
    parts = zip(means.items(), mask.split([len(mean) for mean in means.values()]), strict=True)
    found = ((layer, part.nonzero().flatten().tolist(), mean) for (layer, mean), part in parts)
    return {layer: (heads, mean[heads]) for layer, heads, mean in found if heads}
