"""EMLoC: demonstrations read part by part, pruned layer by layer under a bound on what the answers lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer.memory import Memory, MemoryMethod, Words

from ._importance import answer_slots, special_tokens
from ._search import Budget, Limits, search


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
        budget: what may be kept in all, instead of a bound: see `unit`; None goes by `max_divergence`.
        unit: of `budget`: "share" of the tokens, "tokens" a layer, or "bytes" of the whole memory.
        kernel_size: neighbours over which scores are averaged; odd, 1 for none.
        sinks: the sequence's first tokens and special tokens that are always kept; 0 keeps none, special ones neither.
        answer_share: how much of what a layer keeps may be answers' tokens, best first; None keeps all of them always.
        memory_in_softmax: earlier parts take their share of the attention that tokens are scored by.
        bisect: look for the smallest number that holds the bound; False tries 10, 20 and 50 % only.
        schedule: "growing" lets each layer spend its part of the bound; "constant" lets the first ones spend all.
        padding_observes: rows that are padding observe too, as published.
        per_head: each key-value head keeps its own tokens; False: one choice for a layer.
    """

    name: ClassVar[str] = "emloc"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.19812"
    summary: ClassVar[str] = "memories of demonstrations, pruned under a bound on the answers' divergence"

    max_divergence: float = 0.005
    budget: float | None = None
    unit: Literal["share", "tokens", "bytes"] = "share"
    kernel_size: int = 1
    sinks: int = 4
    answer_share: float | None = 0.5
    memory_in_softmax: bool = True
    bisect: bool = True
    schedule: Literal["growing", "constant"] = "growing"
    padding_observes: bool = False
    per_head: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.max_divergence <= 0.6932:
            raise steer.SteerError(f"max_divergence is in nats, above 0 and at most ln 2; got {self.max_divergence}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise steer.SteerError(f"kernel_size must be odd and at least 1, got {self.kernel_size}")
        if self.answer_share is not None and not 0 <= self.answer_share <= 1:
            raise steer.SteerError(f"answer_share must be between 0 and 1 or None, got {self.answer_share}")
        if self.budget is not None and self.budget <= 0:
            raise steer.SteerError(f"budget must be above 0 or None, got {self.budget}")

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

    def compress(
        self, model: Any, before: Memory, inputs: Mapping[str, torch.Tensor], words: Words, shots: Sequence[Any]
    ) -> Memory:
        """Read a part, score its tokens by its own answers, and keep what the bound or the budget allows."""
        whole = before.read(model, inputs)
        batch = words.questions(shots)
        answers = [] if batch.answers is None else [[t for t in row.tolist() if t >= 0] for row in batch.answers]
        limits = Limits(
            always=special_tokens(words.processor, whole, before.length, self.sinks)
            if self.sinks
            else torch.zeros(whole.length, dtype=torch.bool, device=whole.tokens.device),
            answers=answer_slots(whole, before.length, answers),
            since=before.length,
        )
        found = search(self, model, whole, batch, limits, self._budget(before, whole))
        steps = [*before.info.get("search", ()), found.spent]
        return replace(whole.keep(found.keep), info={**before.info, "search": steps})

    def _budget(self, before: Memory, whole: Memory) -> Budget | None:
        """The number of tokens a layer may keep of the latest part, in the mean."""
        if self.budget is None:
            return None
        fresh = whole.length - before.length
        if self.unit == "share":
            return Budget(self.budget * fresh)
        if self.unit == "tokens":
            return Budget(self.budget)
        kept = [whole.kept(layer) for layer in whole.places]
        each = sum(k.keys.shape[1] * (k.keys.shape[-1] + k.values.shape[-1]) * k.keys.element_size() for k in kept)
        return Budget(self.budget / each)
