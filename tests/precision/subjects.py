"""What methods are made on and asked in each precision, and how far what they say is from the fp32 twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import steer
from steer.memory import Chooser

from .outcomes import asked, choices, kept_alike, scored, written
from .precisions import Precise, distance, precise
from .recipes import BUILDING, SCORING

TWICE = ("pai", "vcd")
"""Methods that take one reading of the model from a multiple of another, with the errors of both, and rule tokens out:
what is left are probabilities."""
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


@dataclass(frozen=True)
class Measured:
    """Shares of the fp32 twin's norm, of logits or where tokens are ruled out of probabilities.

    Attributes:
        alone: how far the model without the method is from its twin.
        far: how far the model with it is from the twin with the same tensors.
        effect: how far the method moves the twin.
        ruled_out: some tokens are.
        finite: all numbers are, those of the ruled-out tokens aside.
        got: the logits themselves.
    """

    alone: float
    far: float
    effect: float
    ruled_out: bool
    finite: bool
    got: torch.Tensor


@cache
def subject(model: str, precision: str) -> Subject:
    """Of a shipped model; the same one each time."""
    if model == "tiny-vlm":
        examples, queries = steer.zoo.examples("colour", "demo", 8), steer.zoo.examples("colour", "dev", 3)
    else:
        examples = steer.zoo.labelled("animals", per_class=2)[:8]
        queries = [image for image, _ in steer.zoo.labelled("animals", "test", per_class=1)[:4]]
    return Subject(precise(model, precision), examples, queries)


def subject_of(method: str, precision: str) -> Subject:
    """The one that a method is tried on."""
    return subject("tiny-clip" if method in SCORING else "tiny-vlm", precision)


@cache
def plain(one: Subject) -> Pair:
    """What the model says alone, and what its twin does."""
    return one.says(None), one.says(None, twin=True)


def measured(one: Subject, method: steer.Method) -> Measured:
    """How far a method on a model is from the same tensors on its twin.

    What a cache keeps is a choice: the twin is told it. Methods that build a memory are asked after it.
    """
    if method.name in BUILDING:
        pairs = _after_a_memory(one, method)
    elif isinstance(method, Chooser):
        with choices(method) as told:
            got = one.says(method)
        with choices(method, told):
            pairs = got, one.says(method, twin=True), *plain(one)
    else:
        pairs = one.says(method), one.says(method, twin=True), *plain(one)
    ruled_out = bool(pairs[0].isneginf().any())
    got, truth, bare, bare_truth = (x.softmax(-1) if ruled_out else x for x in pairs)
    far, finite = distance(got, truth), bool(got.isfinite().all())
    return Measured(distance(bare, bare_truth), far, distance(truth, bare_truth), ruled_out, finite, pairs[0])


def _after_a_memory(one: Subject, method: Any) -> tuple[torch.Tensor, ...]:
    here, shots = one.here, one.examples
    held = method.build(here.model, here.processor, shots, chunk=len(shots), certify=False, progress=False)
    twin = kept_alike(held, here.twin, here.processor, shots)
    held.unbind()
    nothing = (steer.memory.Memory.empty(model) for model in (here.model, here.twin))
    bare = [asked(m, here.processor, e, one.queries) for m, e in zip((here.model, here.twin), nothing, strict=True)]
    pairs = (asked(m, here.processor, h, one.queries) for m, h in ((here.model, held), (here.twin, twin)))
    return *pairs, *bare
