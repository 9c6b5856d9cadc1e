"""Sets of heads as masks (P,) over all heads of a model, one layer after the other, and what they do to an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

import steer
from steer import fitting, ops, positions, prompts, sites

Means = Mapping[int, torch.Tensor]
"""By layer (H, d_v): what may replace each head's result."""

Chosen = Mapping[int, tuple[list[int], torch.Tensor]]
"""By layer: some heads, and what replaces their results, (k, d_v)."""


def chosen(means: Means, mask: torch.Tensor) -> Chosen:
    """The heads of a set (P,), layer by layer; layers without any are left out."""
    parts = zip(means.items(), mask.split(_sizes(means)), strict=True)
    found = ((layer, part.nonzero().flatten().tolist(), mean) for (layer, mean), part in parts)
    return {layer: (heads, mean[heads]) for layer, heads, mean in found if heads}


def by_layer(values: torch.Tensor, means: Means) -> torch.Tensor:
    """(P,) -> (L, H), zero where a layer has no such head."""
    table = torch.zeros(max(means) + 1, max(_sizes(means)))
    for layer, part in zip(means, values.split(_sizes(means)), strict=True):
        table[layer, : len(part)] = part
    return table


def losses(model: Any, query: prompts.Batch, means: Means, masks: torch.Tensor, batch_size: int) -> torch.Tensor:
    """-log p(first token of the answer) of one query, (S,), under S sets of heads.

    A set is a row of a batch, so one forward tries `batch_size` of them.

    Args:
        model: the model.
        query: one prompt with its answer.
        means: what replaces the heads' results at the prompt's last token, from which the first token is written.
        masks: (S, P) bool.
        batch_size: rows in one forward.
    """
    parts = masks.split(batch_size)
    scores = [fitting.score(model, [_copies(query, len(part))], *_patches(means, part)) for part in parts]
    return torch.cat([-one.first_log_prob for one in scores])


def _patches(means: Means, masks: torch.Tensor) -> list[steer.Intervention]:
    """Interventions that replace in row s of a batch the heads of masks[s]."""
    last = positions.last_prompt()
    return [
        steer.Intervention(sites.head_out(layer, positions=last), ops.Apply(_patch(mean, part)))
        for (layer, mean), part in zip(means.items(), masks.split(_sizes(means), dim=1), strict=True)
        if part.any()
    ]


def _patch(mean: torch.Tensor, mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def patch(x: torch.Tensor) -> torch.Tensor:
        """(S, T, H, d_v)."""
        return torch.where(mask[:, None, :, None].to(x.device), mean.to(x), x)

    return patch


def _copies(query: prompts.Batch, count: int) -> prompts.Batch:
    """One prompt as `count` rows. Whatever is not by row is by picture or patch, and goes on in the rows' order."""
    inputs = {name: torch.cat([value] * count) for name, value in query.inputs.items()}
    return replace(query, inputs=inputs, answers=None if query.answers is None else query.answers.expand(count, -1))


def _sizes(means: Means) -> list[int]:
    return [len(mean) for mean in means.values()]
