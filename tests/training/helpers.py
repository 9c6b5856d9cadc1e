"""Small methods to fit, and what a fit is compared with."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import steer
from steer.prompts import Prompt
from steer.training import Learned
from steer.training.student import Student
from steer.training.teacher import Teacher

QUICK = {"lr": 0.05, "batch_size": 3, "max_steps": 4, "progress": False}


@dataclass
class Shift(Learned):
    """A vector for every layer, added to what leaves it."""

    name: ClassVar[str] = "shift"
    paper: ClassVar[str] = "https://example.org"
    summary: ClassVar[str] = "For tests."

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        tower = model_map.tower()
        return {"vector": torch.zeros(len(tower.layers), tower.width)}

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        layers = range(len(model_map.tower().layers))
        return [steer.Intervention(steer.sites.resid_out(layers), steer.ops.Add(self.tensors["vector"]))]


@dataclass
class Broken(Shift):
    """Its loss is NaN, or another error comes, from some step on."""

    name: ClassVar[str] = "broken"
    error: ClassVar[BaseException | None] = None
    after: int = 2
    times: ClassVar[int] = 0

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        type(self).times += 1
        if self.times > self.after and self.error is not None:
            raise self.error
        made = super().interventions(model_map)
        if self.times > self.after:
            made.append(steer.Intervention(steer.sites.resid_out([0]), steer.ops.Scale(float("nan"))))
        return made


def student(
    subject: Any, *, terms: tuple[str, ...], items: Any = (), teacher: Teacher | None = None, site: str = "resid_out"
) -> Student:
    """The student of a subject's examples."""
    return Student(
        subject.model,
        subject.processor,
        None,
        [Prompt(one) for one in subject.examples],
        items=list(items),
        terms=list(terms),
        state_losses=Shift().state_losses(),
        site=steer.sites.Site(site),
        teacher=teacher,
    )


def teacher(subject: Any, shots: int = 2, **more: Any) -> Teacher:
    """The teacher of a subject's examples, each after those that follow it."""
    examples = list(subject.examples)
    told = [Prompt(one, tuple((examples * 2)[i + 1 : i + 1 + shots])) for i, one in enumerate(examples)]
    given = {"site": steer.sites.Site("resid_out"), "want_logits": True, "batch_size": 3, "progress": False, **more}
    queries = [Prompt(one) for one in examples]
    return Teacher(subject.model, subject.processor, None, queries, told, **given)


@contextmanager
def counted(model: Any):
    """How many forwards a model makes in a block."""
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def state_of(model: Any) -> tuple[Any, ...]:
    """Everything of a model that a fit has to leave as it was; hooks by module."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(one.requires_grad, one.grad) for one in model.parameters()],
        [module.training for module in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
        model.config._attn_implementation,
    )


def assert_as_before(model: Any, before: tuple[Any, ...]) -> None:
    """The model is as `state_of` found it, bit for bit."""
    now = state_of(model)
    assert now[0].keys() == before[0].keys()
    for name, value in before[0].items():
        assert torch.equal(now[0][name], value), name
    assert now[1:] == before[1:]


@dataclass
class Slow(Shift):
    """The same, slowly enough to be killed on the way; where STEER_TEST_QUICK is set, as fast."""

    name: ClassVar[str] = "slow"

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        if "STEER_TEST_QUICK" not in os.environ:
            time.sleep(0.3)
        return super().interventions(model_map)
