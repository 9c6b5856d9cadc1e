"""Tip-Adapter (Zhang et al., ECCV 2022): the training pictures are the keys of a cache, their labels its values.

-F: the keys are learned, which start as the features.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from . import clip as c


def cache(clip: c.Clip, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Keys (N, P), the normalised features of the shots, and values (N, K), their labels one-hot."""
    keys = c.unit(c.encode_image(clip, images))
    return keys, F.one_hot(labels, classes).to(keys.dtype)


def mix(pictures: Tensor, texts: Tensor, keys: Tensor, values: Tensor, alpha: float, beta: float) -> Tensor:
    """100 f W + alpha exp(-beta (1 - f K)) V of features (B, P), (K, P), the keys as they are: (B, K)."""
    pictures = c.unit(pictures)
    return 100.0 * pictures @ c.unit(texts).T + alpha * (-beta * (1 - pictures @ keys.T)).exp() @ values


def logits(
    clip: c.Clip, texts: Tensor, images: Tensor, keys: Tensor, values: Tensor, alpha: float = 1.0, beta: float = 5.5
) -> Tensor:
    """(B, K). The authors write 100 for the logit scale; `clip.weights` does not enter it."""
    return mix(c.encode_image(clip, images), texts, keys, values, alpha, beta)


def loss(
    clip: c.Clip,
    texts: Tensor,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    values: Tensor,
    alpha: float = 1.0,
    beta: float = 5.5,
) -> Tensor:
    """Of Tip-Adapter-F: cross-entropy, the mean over the batch; the gradient goes to the keys."""
    return F.cross_entropy(logits(clip, texts, images, keys, values, alpha, beta), labels)
