"""CLIP-Adapter (Gao et al., 2021): a small network on the features of the pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from . import clip as c

RATIO = 0.2


def adapted(features: Tensor, learned: Mapping[str, Tensor], ratio: float, prefix: str = "") -> Tensor:
    """ratio A(f) + (1 - ratio) f with A(f) = relu(W2 relu(W1 f)), of features as the projection leaves them.

    `learned`: `fc.0.weight` (P / 4, P), `fc.2.weight` (P, P / 4), each name after `prefix`.
    """
    inner = torch.relu(features @ learned[f"{prefix}fc.0.weight"].T)
    return ratio * torch.relu(inner @ learned[f"{prefix}fc.2.weight"].T) + (1 - ratio) * features


def logits(clip: c.Clip, texts: Tensor, images: Tensor, learned: Mapping[str, Tensor], ratio: float = RATIO) -> Tensor:
    """(B, K); texts (K, P) are the frozen features of the classes."""
    return c.similarity(clip, adapted(c.encode_image(clip, images), learned, ratio), texts)


def loss(
    clip: c.Clip,
    texts: Tensor,
    images: Tensor,
    labels: Tensor,
    learned: Mapping[str, Tensor],
    ratio: float = RATIO,
) -> Tensor:
    """Cross-entropy, the mean over the batch."""
    return F.cross_entropy(logits(clip, texts, images, learned, ratio), labels)
