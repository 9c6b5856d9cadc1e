"""CLIP without training: one template, or an ensemble of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import clip as c


def ensemble(features: Sequence[Tensor]) -> Tensor:
    """One text feature a class (K, P): each template's is normalised, then their mean, then that is normalised."""
    return c.unit(torch.stack([c.unit(of_template) for of_template in features]).mean(0))


def text_features(clip: c.Clip, templates: Sequence[Tensor]) -> Tensor:
    """(K, P), normalised, from the ids (K, T) of every template; with one template, its features."""
    return ensemble([c.encode_text(clip, ids) for ids in templates])


def logits(clip: c.Clip, templates: Sequence[Tensor], images: Tensor) -> Tensor:
    """(B, K)."""
    return c.similarity(clip, c.encode_image(clip, images), text_features(clip, templates))
