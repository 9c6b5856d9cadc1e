"""CoCoOp (Zhou et al., CVPR 2022): every picture shifts the context. The authors' way: one picture after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from . import clip as c


def shift(learned: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """The meta-net, Linear - ReLU - Linear, on normalised features (B, P): (B, D)."""
    w1, b1, w2, b2 = (learned[f"meta_net.linear{i}.{part}"] for i in (1, 2) for part in ("weight", "bias"))
    return torch.relu(features @ w1.T + b1) @ w2.T + b2


def logits(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """(B, K). `learned`: `ctx` (n, D), `meta_net.linear{1,2}.{weight,bias}`."""
    features = c.unit(c.encode_image(clip, images))
    embedded = c.embed(clip, ids)
    made = []
    for feature, moved in zip(features, shift(learned, features), strict=True):
        texts = c.encode_text(clip, ids, c.splice(embedded, learned["ctx"] + moved))
        made.append(c.similarity(clip, feature[None], texts))
    return torch.cat(made)


def loss(clip: c.Clip, ids: Tensor, images: Tensor, labels: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, the mean over the batch."""
    return F.cross_entropy(logits(clip, ids, images, learned), labels)
