"""Every method in bf16, fp16 and int8: as good as in fp32, to what the precision can hold, and nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

import steer
from steer.memory import Chooser

from .outcomes import asked, choices, kept_alike, scored, written
from .precisions import PRECISIONS, TOLERANCE, Precise, bits, distance, precise
from .recipes import BUILDING, RECIPES, SCORING, WRITING

CASES = [(name, precision) for precision in PRECISIONS for name in RECIPES]
UNSEEN = ("icl", "savs", "zero_shot")
"""Methods that do nothing while they are attached: they are a prompt, a vote and hand-written words."""
TWICE = ("pai", "vcd")
"""Methods that take one reading of the model from a multiple of another, with the errors of both, and rule tokens out:
what is left are probabilities."""
FINEST = 1e-6
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in one precision, what methods are made on, and what it is asked.

    Attributes:
        here: the model, its twin and their processor.
        examples: answered questions, or pictures with class names.
        queries: questions, or pictures.
    """

    here: Precise
    examples: Sequence[Any]
    queries: Sequence[Any]

    def says(self, method: steer.Method | None, twin: bool = False) -> torch.Tensor:
        """Logits with a method attached, fp32."""
        model = self.here.twin if twin else self.here.model
        if isinstance(self.queries[0], steer.Example):
            return written(model, self.here.processor, method, self.queries)
        alone = steer.create("zero_shot", classes=sorted({name for _, name in self.examples}))
        return scored(model, self.here.processor, method or alone, self.queries)


@cache
def subject(model: str, precision: str) -> Subject:
    if model == "tiny-vlm":
        examples, queries = steer.zoo.examples("colour", "demo", 8), steer.zoo.examples("colour", "dev", 3)
    else:
        examples = steer.zoo.labelled("animals", per_class=2)[:8]
        queries = [image for image, _ in steer.zoo.labelled("animals", "test", per_class=1)[:4]]
    return Subject(precise(model, precision), examples, queries)


@cache
def plain(model: str, precision: str) -> Pair:
    """What the model says alone, and what its twin does."""
    one = subject(model, precision)
    return one.says(None), one.says(None, twin=True)


def test_every_method_has_a_recipe():
    assert set(RECIPES) == set(steer.methods())


@pytest.mark.parametrize("name, precision", [case for case in CASES if case[0] not in BUILDING])
def test_a_method_is_what_it_is_in_fp32(name, precision, tmp_path):
    model = "tiny-clip" if name in SCORING else "tiny-vlm"
    one, before = subject(model, precision), plain(model, precision)
    weights = bits(one.here.model)
    method = RECIPES[name](one.here.model, one.here.processor, one.examples)
    check_untouched(one.here.model, weights)
    assert all(value.dtype == torch.float32 for value in method.tensors.values() if value.is_floating_point())

    got = check_agrees(one, method, before)
    check_untouched(one.here.model, weights)
    assert torch.equal(one.says(None), before[0])

    method.save_pretrained(tmp_path)
    assert torch.equal(one.says(steer.load(tmp_path, one.here.model)), got)


def check_untouched(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    now = bits(model)
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], value) for name, value in weights.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def check_agrees(one: Subject, method: steer.Method, before: Pair) -> torch.Tensor:
    """Steered logits are finite, moved by the method, and those of the fp32 twin with the same tensors.

    Within the precision's tolerance, and where the model is read once not farther than twice what it is alone. What a
    cache keeps is a choice: the twin is told it.
    """
    if isinstance(method, Chooser):
        with choices(method) as told:
            got = one.says(method)
        with choices(method, told):
            truth = one.says(method, twin=True)
    else:
        got, truth = one.says(method), one.says(method, twin=True)
    twice, tolerance = method.name in TWICE, TOLERANCE[one.here.precision]
    assert bool(got.isneginf().any()) is twice
    here, there, bare, bare_there = (x.softmax(-1) if twice else x for x in (got, truth, *before))
    assert here.isfinite().all()
    alone, far = distance(bare, bare_there), distance(here, there)
    assert max(alone, far) <= tolerance
    if not twice:
        assert far <= max(2 * alone, FINEST)
    if method.name not in UNSEEN:
        assert distance(there, bare_there) > 2 * tolerance
    return got


@pytest.mark.parametrize("precision", PRECISIONS)
def test_votes_are_those_of_fp32(precision):
    one = subject("tiny-vlm", precision)
    method: Any = WRITING["savs"](one.here.model, one.here.processor, one.examples)
    got, truth = (method.classify(m, one.here.processor, one.queries) for m in (one.here.model, one.here.twin))
    assert got[0] == truth[0]
    assert int((got[1] - truth[1]).abs().sum()) <= 2  # one head of 12 may change its mind


@pytest.mark.parametrize("name", BUILDING)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_memory_is_what_it_is_in_fp32(name, precision, tmp_path):
    one = subject("tiny-vlm", precision)
    model, processor = one.here.model, one.here.processor
    weights, before = bits(model), plain("tiny-vlm", precision)
    method: Any = RECIPES[name](model, processor, one.examples)
    memory = method.build(model, processor, one.examples, chunk=8, certify=False, progress=False)
    check_untouched(model, weights)
    got = asked(model, processor, memory, one.queries)
    twin = kept_alike(memory, one.here.twin, processor, one.examples)
    assert got.isfinite().all()
    assert distance(got, asked(one.here.twin, processor, twin, one.queries)) <= TOLERANCE[precision]
    memory.save(tmp_path, processor)
    loaded = steer.memory.Memory.load(tmp_path, model, processor=processor)
    assert torch.equal(asked(model, processor, loaded, one.queries), got)
    loaded.unbind()
    memory.unbind()
    assert torch.equal(one.says(None), before[0])
