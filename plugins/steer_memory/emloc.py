"""EMLoC: demonstrations read part by part, pruned layer by layer under a bound on what the answers lose."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer._config import encode_config
from steer.memory import Memory, MemoryMethod, Words, certificate, read
from steer.memory.method import batches

from ._importance import always_kept, answer_slots
from ._search import Limits, search

ATTEMPTS = 8
"""Bounds for the parts that are tried, each at most half the last, until the whole memory holds its own."""


@dataclass
class EMLoC(MemoryMethod):
    """Efficient many-shot in-context learning by layer-wise pruning under a Jensen-Shannon bound (arXiv:2505.19812).

    Each part of the demonstrations is read after the memory so far. Its own demonstrations are then asked again: the
    attention from the rows that predict their answers scores the part's tokens, and each layer, from the last to the
    first, keeps as few of them as leave the answers' distribution within `max_divergence` of the one after the whole
    part. What was kept of earlier parts stays.

    The published algorithm has traps, each mended here by a switch; `EMLoC.published()` turns all of them off.

    Attributes:
        max_divergence: mean Jensen-Shannon divergence, in nats, that the answers of a part may lose (delta).
        budget: what is kept, the same in every layer, instead of a bound: see `unit`; None goes by `max_divergence`.
        unit: of `budget`: "share" of the tokens, "tokens" a layer, or "bytes" of keys and values in all layers.
        kernel_size: neighbours over which scores are averaged; odd, 1 for none.
        sinks: how many of the sequence's first tokens are always kept.
        special: special tokens that are no pictures are always kept too. Off, because with short demonstrations their
            share of a small budget cost more than it gave on both models that this was tuned on.
        answer_share: how much of what a layer keeps may be answers' tokens, best first; None keeps all of them always.
        memory_in_softmax: earlier parts take their share of the attention that tokens are scored by.
        bisect: look for the smallest number that holds the bound; False tries 10, 20 and 50 % only.
        schedule: "growing" lets each layer spend its part of the bound; "constant" lets the first ones spend all.
        padding_observes: rows that are padding observe too, as published.
        group: layers that are pruned in one step; more make the search shorter.
        per_head: each key-value head keeps its own tokens; False: one choice for a layer.
        end_to_end: hold the bound for the whole memory, not for each part of it: compare with the whole context, and
            build again with a smaller bound where it is not held. Holds the whole context's cache while building.
    """

    name: ClassVar[str] = "emloc"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.19812"
    summary: ClassVar[str] = "memories of demonstrations, pruned under a bound on the answers' divergence"

    max_divergence: float = 0.005
    budget: float | None = None
    unit: Literal["share", "tokens", "bytes"] = "share"
    kernel_size: int = 1
    sinks: int = 4
    special: bool = False
    answer_share: float | None = 0.5
    memory_in_softmax: bool = True
    bisect: bool = True
    schedule: Literal["growing", "constant"] = "growing"
    padding_observes: bool = False
    group: int = 1
    per_head: bool = True
    end_to_end: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_divergence <= 0.6932:
            raise steer.SteerError(f"max_divergence is in nats, above 0 and at most ln 2; got {self.max_divergence}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise steer.SteerError(f"kernel_size must be odd and at least 1, got {self.kernel_size}")
        if self.answer_share is not None and not 0 <= self.answer_share <= 1:
            raise steer.SteerError(f"answer_share must be between 0 and 1 or None, got {self.answer_share}")
        if self.budget is not None and (self.budget <= 0 or (self.unit == "share" and self.budget > 1)):
            raise steer.SteerError(f"budget must be above 0 or None, and a share at most 1; got {self.budget}")
        if self.group < 1:
            raise steer.SteerError(f"group must be a number of layers >= 1, got {self.group}")

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """The algorithm as its authors' code has it: every mend off."""
        old: dict[str, Any] = {
            "kernel_size": 5,
            "sinks": 0,
            "answer_share": None,
            "memory_in_softmax": False,
            "bisect": False,
            "schedule": "constant",
            "padding_observes": True,
        }
        return cls(**{**old, **changes})

    def interventions(self, model_map: Any) -> list[steer.Intervention]:
        """A memory is built, not attached.

        Raises:
            SteerError: always; it says how to go on.
        """
        raise steer.SteerError(
            "method 'emloc' makes memories: memory = method.build(model, processor, demonstrations), then "
            "model.generate(**inputs, past_key_values=memory)"
        )

    def build(self, model: Any, processor: Any, demonstrations: Sequence[steer.Example], **options: Any) -> Memory:
        """As `MemoryMethod.build`; with `end_to_end`, as often as it takes to hold the bound from end to end."""
        if not self.end_to_end or self.budget is not None:
            return super().build(model, processor, demonstrations, **options)
        aimed, probes = self.max_divergence, options.get("probes", ())
        template = options.get("template")
        words = Words(model, processor, template)
        whole = read(model, processor, demonstrations, chunk=options.get("chunk", 4), template=template)
        for _ in range(ATTEMPTS):
            once = replace(self, max_divergence=aimed, end_to_end=False)
            memory = once.build(model, processor, demonstrations, **{**options, "certify": False})
            measured = certificate(model, whole, memory, words, demonstrations, probes)
            reached = measured["calibration"]["mean"]
            if reached <= self.max_divergence:
                break
            aimed *= min(0.5, 0.8 * self.max_divergence / reached)
        else:
            warnings.warn(
                f"this memory's answers are {reached:.4g} nats from those after the whole context, where at most "
                f"{self.max_divergence:.4g} was asked for, after {ATTEMPTS} attempts; its certificate says so too",
                stacklevel=2,
            )
        info = {**memory.info, "config": encode_config(self), "aimed": aimed, "certificate": measured}
        return replace(memory, info=info).bind(model)

    def compress(
        self,
        model: Any,
        before: Memory,
        inputs: Mapping[str, torch.Tensor],
        words: Words,
        shots: Sequence[Any],
        total: int,
    ) -> Memory:
        """Read a part, score its tokens by its own answers, and keep what the bound or the budget allows."""
        whole = before.read(model, inputs)
        asked = batches(words, shots, whole)
        limits = Limits(
            always=always_kept(words.processor, whole, before.length, self.sinks, self.special),
            answers=answer_slots(whole, before.length, asked),
            since=before.length,
        )
        found = search(self, model, whole, asked, limits, self._budget(before, whole, total))
        steps = [*before.info.get("search", ()), found.spent]
        return replace(whole.keep(found.keep), info={**before.info, "search": steps})

    def _budget(self, before: Memory, whole: Memory, total: int) -> float | None:
        """How many tokens a layer may keep of the latest part."""
        if self.budget is None:
            return None
        fresh = whole.length - before.length
        if self.unit == "share":
            return self.budget * fresh
        if self.unit == "tokens":
            return self.budget * fresh / total
        kept = [whole.kept(layer) for layer in whole.places]
        each = sum(k.keys.shape[1] * (k.keys.shape[-1] + k.values.shape[-1]) * k.keys.element_size() for k in kept)
        return self.budget / each * fresh / total
