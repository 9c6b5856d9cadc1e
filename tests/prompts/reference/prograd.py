"""ProGrad (Zhu et al., ICCV 2023): CoOp whose step never goes against the zero-shot prediction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from . import clip as c
from . import coop

logits = coop.logits


def distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross-entropy of softmax(student / T) under softmax(teacher / T), the mean over the batch.

    The authors call it KL. It is larger than that by the teacher's entropy, which has no gradient.
    """
    wanted = (teacher / temperature).softmax(-1)
    return -(wanted * (student / temperature).log_softmax(-1)).sum(-1).mean() * temperature**2


def losses(
    clip: c.Clip,
    ids: Tensor,
    images: Tensor,
    labels: Tensor,
    learned: Mapping[str, Tensor],
    teacher: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy and the distance from `teacher` (B, K), the zero-shot logits: two losses, never summed."""
    student = logits(clip, ids, images, learned)
    return F.cross_entropy(student, labels), distance(student, teacher, temperature)


def projected(entropy: Tensor, general: Tensor, weight: float = 1.0) -> Tensor:
    """The gradient that is stepped along, for one parameter; both are gradients of its shape.

    g - weight (g . u) u with u the unit vector along `general`, if g . u < 0; g otherwise.
    """
    along = general / general.norm()
    inner = (entropy * along).sum()
    return torch.where(inner < 0, entropy - weight * inner * along, entropy)


def gradients(
    clip: c.Clip,
    ids: Tensor,
    images: Tensor,
    labels: Tensor,
    learned: Mapping[str, Tensor],
    teacher: Tensor,
    temperature: float = 1.0,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """The projected gradient of every learned tensor, by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in learned.items()}
    entropy, general = losses(clip, ids, images, labels, leaves, teacher, temperature)
    first = torch.autograd.grad(entropy, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(general, list(leaves.values()))
    return {name: projected(g, k, weight) for name, g, k in zip(leaves, first, second, strict=True)}
