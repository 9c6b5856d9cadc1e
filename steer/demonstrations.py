"""Which demonstrations stand before a query, and in which order."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from ._content import question_digest
from .errors import SteerError, unknown_name
from .examples import Example
from .prompts import Prompt, batches

Choose = Literal["random", "similar", "balanced"]
Order = Literal["random", "fixed"]


@dataclass(frozen=True)
class Demonstrations:
    """Answered examples, and the rule by which some of them are shown before a query.

    What a query is shown depends on the pool, the fields here and the query itself (its question and pictures), never
    on the queries beside it: batches, repetitions and their order change nothing. An example with the query's question
    and pictures is never shown to it, whatever its answer is.

    Attributes:
        pool: answered examples to choose from.
        shots: how many are shown; fewer where the pool has no more.
        choose: "random"; "balanced", at random but every answer as often as any other, as far as that goes; "similar",
            those whose hidden states are most alike (cosine, last layer of the text tower, last token of the query
            without demonstrations), which needs the model and its processor.
        order: "random" draws choice and order anew for each query. "fixed" shows every query the same examples in the
            same order; where "similar" chooses, each query has its own, and the most similar stands last, beside it.
        orders: in how many different orders `prompts` shows a query's demonstrations.
        seed: of everything random.

    Raises:
        SteerError: the pool is not of answered examples, or a field has a value that means nothing.
    """

    pool: tuple[Example, ...]
    shots: int = 4
    choose: Choose = "random"
    order: Order = "random"
    orders: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pool", tuple(self.pool))
        for index, one in enumerate(self.pool):
            if not isinstance(one, Example):
                raise SteerError(f"pool[{index}] is a {type(one).__name__}; demonstrations are steer.Example")
            if not one.answer:
                raise SteerError(f"pool[{index}] has no answer; a demonstration shows its answer")
        if self.choose not in get_args(Choose):
            raise unknown_name("choice of demonstrations", self.choose, get_args(Choose))
        if self.order not in get_args(Order):
            raise unknown_name("order of demonstrations", self.order, get_args(Order))
        if self.shots < 0 or self.orders < 1:
            raise SteerError(f"shots must be at least 0 and orders at least 1, got {self.shots} and {self.orders}")

    def for_queries(
        self,
        queries: Sequence[Example],
        model: Any = None,
        processor: Any = None,
        *,
        template: str | None = None,
        batch_size: int = 16,
    ) -> list[Prompt]:
        """One prompt for each query, its demonstrations in the first of their orders.

        Args:
            queries: what is asked; an answer is not looked at, and kept.
            model: for "similar": one forward for each example of the pool and each query.
            processor: the model's processor or tokenizer, for "similar".
            template: how an example is written when states are read, as in `steer.prompts.encode`.
            batch_size: prompts in one such forward.

        Raises:
            SteerError: "similar" without model and processor; pictures that cannot be compared.
        """
        chosen = self._chosen(queries, model, processor, template, batch_size)
        return [Prompt(query, shots) for query, shots in zip(queries, chosen, strict=True)]

    def prompts(
        self,
        queries: Sequence[Example],
        model: Any = None,
        processor: Any = None,
        *,
        template: str | None = None,
        batch_size: int = 16,
    ) -> list[list[Prompt]]:
        """For each query `orders` prompts: the same demonstrations in different orders, the first as `for_queries`.

        Fewer where so few demonstrations have no more orders. Arguments and errors are those of `for_queries`.
        """
        one_each = self.for_queries(queries, model, processor, template=template, batch_size=batch_size)
        return [[Prompt(one.query, shots) for shots in self._orders(one)] for one in one_each]

    def _chosen(
        self, queries: Sequence[Example], model: Any, processor: Any, template: str | None, batch_size: int
    ) -> list[tuple[Example, ...]]:
        keys = [question_digest(query) for query in queries]
        if self.choose != "similar":
            return [self._drawn(key) for key in keys]
        if model is None or processor is None:
            raise SteerError(
                'demonstrations chosen as "similar" are compared by hidden states: give the model and its processor, '
                "for_queries(queries, model, processor)"
            )
        both = [*self.pool, *queries]
        bare = [Prompt(one) for one in both]
        states = _ends(model, batches(model, processor, bare, template=template, batch_size=batch_size))
        alike = states[len(self.pool) :] @ states[: len(self.pool)].T
        return [self._nearest(key, row) for key, row in zip(keys, alike, strict=True)]

    def _drawn(self, key: bytes) -> tuple[Example, ...]:
        """Groups take turns; a query that is in the pool gives its place to the next of its group."""
        rng = self._random(key)
        turns = [[i for i in rng.sample(group, len(group)) if self._keys[i] != key] for group in self._groups]
        turns = rng.sample(turns, len(turns))
        rounds = max(map(len, turns), default=0)
        dealt = [group[turn] for turn in range(rounds) for group in turns if turn < len(group)][: self.shots]
        return tuple(self.pool[i] for i in rng.sample(dealt, len(dealt)))

    def _nearest(self, key: bytes, alike: torch.Tensor) -> tuple[Example, ...]:
        """`alike` (N,) is the cosine with each example of the pool."""
        ranked = alike.argsort(descending=True, stable=True).tolist()
        chosen = [i for i in ranked if self._keys[i] != key][: self.shots][::-1]
        if self.order == "random":
            chosen = self._random(key).sample(chosen, len(chosen))
        return tuple(self.pool[i] for i in chosen)

    def _orders(self, first: Prompt) -> list[tuple[Example, ...]]:
        rng = self._random(b"orders" + question_digest(first.query))
        places = tuple(range(len(first.shots)))
        found = {places: None}  # a dict, because a set has no order of its own
        while len(found) < min(self.orders, math.factorial(len(places))):
            found[tuple(rng.sample(places, len(places)))] = None
        return [tuple(first.shots[i] for i in order) for order in found]

    def _random(self, key: bytes) -> random.Random:
        return random.Random(f"{self.seed}" if self.order == "fixed" else f"{self.seed}:{key.hex()}")

    @cached_property
    def _keys(self) -> list[bytes]:
        return [question_digest(one) for one in self.pool]

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Places in the pool, by answer where answers are balanced."""
        groups: dict[str, list[int]] = {}
        for index, one in enumerate(self.pool):
            groups.setdefault(one.answer if self.choose == "balanced" else "", []).append(index)
        return list(groups.values())


def _ends(model: Any, queries: Any) -> torch.Tensor:
    """(N, D), of unit length: the state after the last layer at the end of each prompt."""
    # Here, because these read a whole model's map and would make `import steer.demonstrations` slow.
    from . import sites
    from ._inspecting import inspect
    from .fitting import states

    last = inspect(model).tower().layers[-1].index
    (rows,) = states(model, queries, sites.resid_out(last)).values()
    return torch.nn.functional.normalize(rows, dim=-1)
