"""The base classes of methods that choose by a rule which tokens a layer's cache keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .. import ops, sites
from ..errors import InterventionError, MappingError
from ..examples import Example
from ..intervention import Intervention
from ..model_map import ModelMap
from .memory import Memory
from .method import MemoryMethod
from .seen import Seen
from .words import Words


@dataclass
class Chooser(MemoryMethod):
    """A method that keeps some tokens of a prompt, layer by layer: around `generate`, or to build a memory.

    Layers whose cache cannot be pruned (sliding windows, linear and state-space layers) keep what they have.

    Attributes:
        layers: where it acts; "all" that can.
    """

    layers: tuple[int, ...] | Literal["all"] = "all"

    needs_images = False
    """Whether `choose` asks where pictures are."""

    @abstractmethod
    def choose(self, seen: Seen) -> torch.Tensor | None:
        """What one layer keeps, bool (B, H_kv, S), or None for everything. Called once for each layer and prompt.

        Args:
            seen: the layer's queries, keys and values, and which of them are real.
        """

    def again(self) -> int | None:
        """After how many written tokens `choose` is called again; None: never."""
        return None

    def observers(self) -> int:
        """How many of the latest queries `choose` is shown while text is written."""
        return 1

    def interventions(self, model_map: ModelMap) -> list[Intervention]:
        """One choice, over all layers that it can be made in.

        Raises:
            MappingError: the text tower has no attention that the choice can be made in.
        """
        keep = ops.Keep(self.choose, self.again(), self.observers(), self.needs_images)
        return [Intervention(sites.cache(self._places(model_map)), keep)]

    def compress(
        self,
        model: Any,
        before: Memory,
        inputs: Mapping[str, torch.Tensor],
        words: Words,
        shots: Sequence[Example],
        total: int,
    ) -> Memory:
        """Read one more part, of which each layer keeps what is chosen; what was kept before stays."""
        from ..session import attach

        end = before.length + inputs["input_ids"].shape[1]
        with attach(model, self, measure="none", prompt_length=end):
            return before.read(model, inputs)

    def _places(self, model_map: ModelMap) -> list[int]:
        if self.layers != "all":
            return list(self.layers)
        found = [
            layer.index
            for layer in model_map.tower("text").layers
            if layer.attention is not None and layer.attention.kind == "softmax" and layer.attention.registry
        ]
        if not found:
            raise MappingError(
                f"method {self.name!r} chooses by queries and keys, and no layer of {model_map.model_class}'s text "
                "tower is a softmax attention in transformers' registry; prune its cache with steer.memory.prune"
            )
        return found


@dataclass
class Scorer(Chooser):
    """A method that keeps the tokens of the highest score; a subclass says what the score is, in a few lines.

    Of the real tokens that came after an earlier memory, each layer keeps a share or a number, counted for every row of
    the batch alone. Padding is not kept, and an earlier memory stays as it is. The sequence's first tokens go before
    all others, then the newest ones of methods that have a window, then the best; of equals the earlier one.

    Attributes:
        keep: share of the tokens, above 0 and at most 1, rounded down to whole tokens, but one at least.
        budget: tokens for each layer (and key-value head), in place of `keep`.
        sinks: how many of the sequence's first tokens are always kept.
        per_head: each key-value head keeps its own tokens, all equally many; False: one set for all heads of a layer,
            by their mean score.
        every: choose again after so many written tokens, down to the same share of everything read and written, or
            the same budget; None chooses once, where the prompt ends.
        layers: where it acts; "all" that can.
    """

    keep: float = 0.5
    budget: int | None = None
    sinks: int = 4
    per_head: bool = True
    every: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InterventionError(f"keep is a share of the tokens, above 0 and at most 1; got {self.keep!r}")
        for name, least in (("budget", 1), ("sinks", 0), ("every", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InterventionError(f"{name} of method {self.name!r} must be {least} or more; got {value!r}")

    @abstractmethod
    def score(self, seen: Seen) -> torch.Tensor:
        """How much each token is worth, fp32 (B, H_kv, S); what it is at padding does not matter.

        Args:
            seen: the layer's queries, keys and values, after position embeddings and norms, and which of them are real.
        """

    def newest(self) -> int:
        """How many of the newest tokens go before the best ones."""
        return 0

    def again(self) -> int | None:
        """`every`."""
        return self.every

    def observers(self) -> int:
        """All queries since the last choice."""
        return self.every or 1

    def count(self, seen: Seen) -> torch.Tensor:
        """How many tokens a layer keeps of each row, int64 (B,)."""
        if self.budget is not None:
            return seen.total.clamp(max=self.budget)
        # a share such as 0.29 of 100 is 28.999999999999996
        return (seen.total.double() * self.keep + 1e-6).floor().long().clamp(min=1)

    def choose(self, seen: Seen) -> torch.Tensor | None:
        """The best tokens, as many as `count` says, or None where that is all of them."""
        free = seen.real & seen.fresh
        count = self.count(seen)
        if bool((count[:, None] >= free.sum(-1)).all()):
            return None
        score = self.score(seen) if self.per_head else over_heads(self.score(seen), seen)
        first, newest = seen.oldest(self.sinks) & free, seen.newest(self.newest()) & free
        # the newest of them first, should there be room for some only
        score = torch.where(newest, seen.slots.to(score.dtype), score)
        tier = torch.where(first, 3, 2 * newest)
        count = torch.maximum(count, first.sum(-1).amax(1))
        return self.select(score, free, tier, count) | (seen.real & ~seen.fresh)

    def select(self, score: torch.Tensor, free: torch.Tensor, tier: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """What is kept of the tokens that may be dropped, bool (B, H_kv, S).

        Args:
            score: (B, H_kv, S), what each is worth.
            free: bool (B, H_kv, S), which may be dropped.
            tier: int64 (B, H_kv, S), 3 for the sequence's first tokens, 2 for the newest, else 0; higher ones go first.
            count: int64 (B,), how many a head keeps of each row.
        """
        return free & (places(score, free, tier) < count[:, None, None])


def places(score: torch.Tensor, free: torch.Tensor, tier: torch.Tensor) -> torch.Tensor:
    """Each column's place along the last axis: free ones first, then by tier, then by score, then by position.

    Args:
        score: (..., S).
        free: bool (..., S).
        tier: int64 (..., S), 0 or more; higher ones go first.
    """
    order = score.masked_fill(~free, 0).sort(dim=-1, descending=True, stable=True).indices
    tier = torch.where(free, tier, -1).gather(-1, order)
    order = order.gather(-1, tier.sort(dim=-1, descending=True, stable=True).indices)
    return torch.empty_like(order).scatter(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def over_heads(score: torch.Tensor, seen: Seen) -> torch.Tensor:
    """The mean over key-value heads of what stands at one slot, (B, H_kv, S), the same wherever a head has it."""
    if seen.slots.shape[1] == 1:
        return score.mean(1, keepdim=True).expand_as(score)
    slots = seen.slots.expand(score.shape)
    flat = slots.flatten(1)
    total = score.new_zeros(score.shape[0], int(slots.max()) + 1)
    total.scatter_add_(1, flat, score.masked_fill(~seen.real, 0).flatten(1))
    return (total / score.shape[1]).gather(1, flat).view_as(score)
