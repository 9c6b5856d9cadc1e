"""The losses: the classes' scores, and what keeps a fit near the model that it started from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, l1_loss, normalize

from ._parts import wide

# PromptSRC's weights of the two features; that of the scores is 1.
TEXT_WEIGHT, IMAGE_WEIGHT = 25.0, 10.0


@dataclass(frozen=True)
class Step:
    """What one step has seen.

    Attributes:
        labels: int64 (B,).
        scores: (B, K), with what is learned; `plain_scores` by the model as it is.
        texts: features of the classes, (K, D) or (B, K, D); `plain_texts` (K, D) what they are to stay near.
        images: features of the pictures, (B, D); `plain_images` by the model as it is.
    """

    labels: torch.Tensor
    scores: torch.Tensor
    texts: torch.Tensor
    images: torch.Tensor
    plain_texts: torch.Tensor | None = None
    plain_images: torch.Tensor | None = None
    plain_scores: torch.Tensor | None = None


def terms(step: Step, regulariser: str) -> dict[str, torch.Tensor]:
    """Every loss of a step by name, one number for each picture, (B,); what is about texts is the same for all."""
    made = {"ce": cross_entropy(step.scores, step.labels, reduction="none")}
    if regulariser == "knowledge":
        made["knowledge"] = _same(_apart(step.texts, step.plain_texts), step)
    elif regulariser == "consistency":
        made["consistency"] = _same(_apart(step.texts, step.plain_texts), step) + _each(step.images, step.plain_images)
    elif regulariser == "self_regulation":
        made["self_regulation"] = _self_regulation(step)
    elif regulariser == "aligned_gradient":
        assert step.plain_scores is not None
        target = step.plain_scores.softmax(-1)
        made["kl"] = kl_div(step.scores.log_softmax(-1), target, reduction="none").sum(-1)
    return made


def weights(regulariser: str, weight: float) -> dict[str, float]:
    """How much each term counts."""
    if regulariser == "none":
        return {"ce": 1.0}
    # ProGrad's second gradient is never added, it only says which part of the first to leave out.
    return {"ce": 1.0, "kl": 1.0} if regulariser == "aligned_gradient" else {"ce": 1.0, regulariser: weight}


class AlignedGradient:
    """ProGrad: what the gradient of the cross-entropy has against that of the KL to the zero-shot scores is taken out.

    g - weight (g . u) u where g . u < 0, for each tensor, u the KL's gradient made a unit vector. Both are gradients of
    the whole batch, in however many parts and processes it comes.
    """

    def __init__(self, learned: Mapping[str, torch.Tensor], weight: float) -> None:
        self.learned, self.weight = [one for one in learned.values() if one.requires_grad], weight
        self.start()

    def start(self) -> None:
        """A new batch begins."""
        self._other = [torch.zeros_like(one) for one in self.learned]

    def add(self, losses: Mapping[str, torch.Tensor], count: int) -> None:
        """Take in a part of a batch of `count`: the cross-entropy's gradient in `.grad`, the KL's beside it."""
        for one in self.learned:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        for name, sums in (("ce", [one.grad for one in self.learned]), ("kl", self._other)):
            loss = losses[name].sum() / count
            found = torch.autograd.grad(loss, self.learned, retain_graph=name == "ce", allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                assert total is not None
                if gradient is not None:
                    total += gradient

    def project(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put the right gradient in `.grad`, which holds the whole batch's; `add_up` sums over processes."""
        for one, share in zip(self.learned, self._other, strict=True):
            assert one.grad is not None
            g, other = one.grad, add_up(share)
            unit = other / other.norm().clamp_min(1e-12)
            along = (g * unit).sum()
            one.grad = torch.where(along < 0, g - self.weight * along * unit, g)


def gaussian(epochs: int, mean: float, std: float) -> list[float]:
    """PromptSRC's weights of the epochs in the mean, which sum to 1; epochs are counted from 1."""
    made = [math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, epochs + 1)]
    total = sum(made)
    return [one / total for one in made] if total > 0 else [0.0] * (epochs - 1) + [1.0]


def _same(value: torch.Tensor, step: Step) -> torch.Tensor:
    return value.expand(len(step.labels))


def _apart(texts: torch.Tensor, plain: torch.Tensor | None) -> torch.Tensor:
    """1 - the mean cosine."""
    assert plain is not None
    return 1 - cosine_similarity(wide(texts), wide(plain).expand(texts.shape), dim=-1).mean()


def _each(images: torch.Tensor, plain: torch.Tensor | None) -> torch.Tensor:
    assert plain is not None
    return 1 - cosine_similarity(wide(images), wide(plain), dim=-1)


def _self_regulation(step: Step) -> torch.Tensor:
    """PromptSRC: features near the plain model's by their mean absolute difference, and scores by their KL."""
    assert step.plain_texts is not None
    assert step.plain_images is not None
    assert step.plain_scores is not None
    plain = normalize(wide(step.plain_texts), dim=-1).expand(step.texts.shape)
    texts = l1_loss(normalize(wide(step.texts), dim=-1), plain)
    images, seen = normalize(wide(step.images), dim=-1), normalize(wide(step.plain_images), dim=-1)
    moved = (images - seen).abs().mean(-1)
    target = step.plain_scores.log_softmax(-1)
    kl = kl_div(step.scores.log_softmax(-1), target, reduction="sum", log_target=True) / step.scores.numel()
    return _same(TEXT_WEIGHT * texts + kl, step) + IMAGE_WEIGHT * moved
