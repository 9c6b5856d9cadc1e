"""One fit of the plugin, and the same from the reference's equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import steer
from steer_prompts import _start
from tests.prompts import parity
from tests.prompts.reference import prograd, step
from tests.prompts.truth import Truth

RATE = 0.02
EXAMPLES = [(picture, parity.CLASSES[label]) for picture, label in zip(parity.PICTURES, parity.LABELS, strict=True)]
WHOLE: dict[str, Any] = {
    "lr": RATE, "epochs": 1, "batch_size": len(EXAMPLES), "schedule": "linear", "warmup_ratio": 0.0,
    "weight_decay": 5e-4, "momentum": 0.9, "progress": False, "augment": "none",
}  # fmt: skip


@dataclass
class Fitted:
    """What a fit of the plugin left behind.

    Attributes:
        method: fitted.
        before: the tensors that it started from.
        gradients: of its last step.
        terms: each term of the loss in that step.
    """

    method: Any
    before: dict[str, Tensor]
    gradients: dict[str, Tensor]
    terms: dict[str, float]


def fitted(
    monkeypatch: Any, name: str, one: parity.Subject, dtype: torch.dtype, seed: int = 2, **options: Any
) -> Fitted:
    """`fit` as it is, but from `parity.tensors` of a seed and in their dtype; options replace those of `WHOLE`."""
    method = parity.preset(name)
    before = parity.tensors(method, steer.TwoStream(one.model, one.processor), dtype, seed)
    leaves = {key: value.clone() for key, value in before.items()}
    with monkeypatch.context() as patch:
        # fit trains the very tensors that it is given, so that their gradients can be looked at after it
        patch.setattr(_start, "initial", lambda *given: leaves)
        method.fit(one.model, one.processor, options.pop("examples", EXAMPLES), **{**WHOLE, **options})
    last = method.provenance["training"]["history"][-1]
    gradients = {key: value.grad for key, value in leaves.items()}
    return Fitted(method, before, gradients, {key: value for key, value in last.items() if key != "step"})


def gradients(truth: Truth, learned: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the authors step along."""
    if truth.system == "prograd":
        given = truth.clip, truth.ids, truth.images, truth.labels, learned
        return prograd.gradients(*given, truth.zero_shot().detach())
    return step.gradients(truth.loss, learned)[1]


def steps(truth: Truth, learned: dict[str, Tensor], rates: list[float]) -> list[dict[str, Tensor]]:
    """The tensors after each of some steps of SGD, over all examples at once."""
    made, momenta = [], None
    for rate in rates:
        learned, momenta = step.sgd(learned, gradients(truth, learned), momenta, lr=rate)
        made.append(learned)
    return made
