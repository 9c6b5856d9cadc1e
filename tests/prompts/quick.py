"""Methods that were fitted in a moment, and what they are looked at with."""

from __future__ import annotations

from typing import Any

import torch

import steer
from tests.prompts.models import CLASSES, pictures

PICTURES = pictures(8)
EXAMPLES = [(picture, CLASSES[index % len(CLASSES)]) for index, picture in enumerate(PICTURES)]
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 4, "warmup_lr": 0.1, "lr": 0.1, "progress": False}
DEEP = {"text_depth": 3, "vision_depth": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "coop": {"context": 3},
    "cocoop": {"bottleneck": 4},
    "maple": DEEP,
    "coprompt": DEEP,
    "kgcoop": {},
    "prograd": {"context": 4},
    "vpt": {"vision_context": 3, "vision_depth": 3},
    "ivlp": DEEP,
    "promptsrc": DEEP,
    "clip_adapter": {},
    "tip_adapter": {},
}


def create(name: str, **options: Any) -> Any:
    """A preset whose depths are those of the tiny models."""
    return steer.create(name, **{"classes": CLASSES, **OPTIONS.get(name, {}), **options})


def fitted(model: Any, processor: Any, name: str, **options: Any) -> Any:
    """The same, fitted for four steps that are large enough to matter."""
    return create(name, **options).fit(model, processor, EXAMPLES, **QUICK)


def called(method: Any, model: Any, images: Any, *more: Any) -> torch.Tensor:
    """The scores by the model's own call with the method, and others, attached."""
    with torch.no_grad(), steer.attach(model, method, *more):
        return model(**method.inputs(images)).logits_per_image


def bits(method: Any) -> dict[str, torch.Tensor]:
    """A copy of the tensors."""
    return {name: value.detach().clone() for name, value in method.tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
