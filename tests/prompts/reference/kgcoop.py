"""KgCoOp (Yao et al., CVPR 2023): CoOp that stays near the features of a hand-written prompt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from . import clip as c
from . import coop

logits = coop.logits


def penalty(texts: Tensor, written: Tensor) -> Tensor:
    """1 - mean over the classes of cos(g, g of the template), features (K, P)."""
    return 1 - (c.unit(texts) * c.unit(written)).sum(-1).mean()


def loss(
    clip: c.Clip,
    ids: Tensor,
    images: Tensor,
    labels: Tensor,
    learned: Mapping[str, Tensor],
    written: Tensor,
    weight: float = 8.0,
) -> Tensor:
    """Cross-entropy + weight * penalty; `written` (K, P) are the frozen features of the template's texts."""
    texts = coop.text_features(clip, ids, learned)
    entropy = F.cross_entropy(c.similarity(clip, c.encode_image(clip, images), texts), labels)
    return entropy + weight * penalty(texts, written)
