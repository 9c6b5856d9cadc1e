"""CoPrompt (Roy and Etemad, ICLR 2024): MaPLe, an adapter behind each tower, and consistency with the frozen model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from . import clip as c
from . import maple
from .clip_adapter import adapted

IMAGE, TEXT = 0.1, 0.2


def features(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of pictures (B, P) and classes (K, P) behind the adapters, not normalised.

    `learned`: as for MaPLe, and `adapter_{image,text}.fc.{0,2}.weight`.
    """
    pictures, texts = maple.features(clip, ids, images, learned)
    return adapted(pictures, learned, IMAGE, "adapter_image."), adapted(texts, learned, TEXT, "adapter_text.")


def logits(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """(B, K)."""
    return c.similarity(clip, *features(clip, ids, images, learned))


def consistency(pictures: Tensor, texts: Tensor, frozen_pictures: Tensor, sentences: Tensor) -> Tensor:
    """(1 - mean cosine of texts and sentences) + (1 - mean cosine of pictures); features (B, P) and (K, P)."""

    def apart(x: Tensor, y: Tensor) -> Tensor:
        return 1 - (c.unit(x) * c.unit(y)).sum(-1).mean()

    return apart(texts, sentences) + apart(pictures, frozen_pictures)


def loss(
    clip: c.Clip,
    ids: Tensor,
    images: Tensor,
    labels: Tensor,
    learned: Mapping[str, Tensor],
    sentences: Tensor,
    second: Tensor,
    weight: float = 8.0,
) -> Tensor:
    """Cross-entropy + weight * consistency.

    Args:
        clip, ids, images, labels, learned: as for `logits`; images are the first view.
        sentences: (K, P) the frozen features of this step's sentence of every class.
        second: (B, P) the frozen model's features of the second view.
        weight: lambda.
    """
    pictures, texts = features(clip, ids, images, learned)
    entropy = F.cross_entropy(c.similarity(clip, pictures, texts), labels)
    return entropy + weight * consistency(pictures, texts, second, sentences)
