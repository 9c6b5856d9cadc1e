"""PromptSRC (Khattak et al., ICCV 2023): independent prompts, held to the frozen model; epochs are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import clip as c
from . import ivlp

logits = ivlp.logits


def teacher_texts(features: Sequence[Tensor]) -> Tensor:
    """(K, P), normalised: the mean of every template's features as they are, unlike a zero-shot ensemble."""
    return c.unit(torch.stack(list(features)).mean(0))


def regulariser(
    pictures: Tensor,
    texts: Tensor,
    frozen_pictures: Tensor,
    frozen_texts: Tensor,
    student: Tensor,
    teacher: Tensor,
    image: float = 10.0,
    text: float = 25.0,
) -> Tensor:
    """text mean|g - g0| + image mean|f - f0| + KL(teacher || student) / (B K); features normalised, means of all.

    Args:
        pictures, frozen_pictures: (B, P).
        texts, frozen_texts: (K, P).
        student, teacher: logits (B, K).
        image, text: the weights.
    """
    near = text * (c.unit(texts) - c.unit(frozen_texts)).abs().mean()
    near = near + image * (c.unit(pictures) - c.unit(frozen_pictures)).abs().mean()
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return near + (log_p.exp() * (log_p - log_q)).sum() / student.numel()


def loss(
    clip: c.Clip,
    ids: Tensor,
    images: Tensor,
    labels: Tensor,
    learned: Mapping[str, Tensor],
    frozen_texts: Tensor,
    image: float = 10.0,
    text: float = 25.0,
) -> Tensor:
    """Cross-entropy + regulariser; `frozen_texts` (K, P) as of `teacher_texts`, the pictures' own are read here."""
    pictures, texts = ivlp.features(clip, ids, images, learned)
    frozen = c.encode_image(clip, images).detach()
    student, teacher = c.similarity(clip, pictures, texts), c.similarity(clip, frozen, frozen_texts)
    held = regulariser(pictures, texts, frozen, frozen_texts, student, teacher, image, text)
    return F.cross_entropy(student, labels) + held


def epoch_weights(epochs: int, mean: float, deviation: float) -> Tensor:
    """(epochs,) in fp64: a Gaussian at 1 .. epochs, scaled to sum to 1. What is kept is the sum of weight * epoch."""
    at = (torch.arange(1, epochs + 1, dtype=torch.float64) - mean) / deviation
    return (-0.5 * at.square()).exp() / (-0.5 * at.square()).exp().sum()
