"""What `steer eval` measures: how often a model answers rightly, by itself, after demonstrations and with methods."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .demonstrations import Demonstrations
from .errors import SteerError
from .examples import Example
from .fitting import score
from .method import Method
from .prompts import Batch, Prompt, batches, write

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Way:
    """One way to answer queries.

    Attributes:
        name: in tables.
        method: attached, and asked for the answers; None for the model as it is.
        demonstrations: shown before each query, where there is no method.
        template: how an example is written, as in `steer.prompts.encode`.
    """

    name: str
    method: Method | None = None
    demonstrations: Demonstrations | None = None
    template: str | None = None

    def prompts(self, model: Any, processor: Any, queries: Sequence[Example]) -> list[Prompt]:
        """What the model is shown for each query."""
        if self.method is not None:
            return self.method.prompts(queries, model, processor)
        if self.demonstrations is not None:
            return self.demonstrations.for_queries(queries, model, processor, template=self.template)
        return [Prompt(query) for query in queries]


@dataclass(frozen=True)
class Row:
    """How one way did.

    Attributes:
        name: of the way.
        answers: what was written for each query.
        right: whether that was the right answer, outer spaces and case aside.
        begins: share of the queries whose answer begins with the right one's tokens, whatever follows: much above the
            accuracy where a method keeps the model from coming to an end. None as for `log_prob`.
        log_prob: mean log-probability of the right answer; None for a method that answers in a way of its own, which no
            single prompt stands for.
        tokens: of a prompt, on average.
        ms: milliseconds for a query, on average, making inputs and writing included.
    """

    name: str
    answers: list[str] = field(repr=False)
    right: list[bool] = field(repr=False)
    begins: float | None
    log_prob: float | None
    tokens: float
    ms: float

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson's)."""
        return wilson(sum(self.right), len(self.right))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers: dict[str, Any] = {"accuracy": self.accuracy, "interval": list(self.interval)}
        numbers |= {"begins_right": self.begins, "log_prob": self.log_prob}
        return {"name": self.name, **numbers, "tokens_per_query": self.tokens, "ms_per_query": self.ms}


@dataclass(frozen=True)
class Evaluation:
    """Queries that are asked in several ways, all under the same conditions."""

    model: Any
    processor: Any
    queries: Sequence[Example]
    batch_size: int = 16
    max_new_tokens: int = 8

    def __post_init__(self) -> None:
        for index, query in enumerate(self.queries):
            if not query.answer:
                raise SteerError(f"example {index} ({query.question!r:.60}) has no answer to compare with")

    def measure(self, way: Way) -> Row:
        """Ask every query in one way."""
        self.answers(way, self.queries[:1])  # the first call of all allocates and compiles
        start = time.perf_counter()
        answers = self.answers(way, self.queries)
        ms = 1000 * (time.perf_counter() - start) / len(self.queries)
        return Row(way.name, answers, right(answers, self.queries), *self._score(way), ms)

    def answers(self, way: Way, queries: Sequence[Example]) -> list[str]:
        """What is written for each query."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        if way.method is not None:
            return way.method.answer(self.model, self.processor, queries, template=way.template, **options)
        shown = way.prompts(self.model, self.processor, queries)
        return write(self.model, self.processor, shown, template=way.template, **options)

    def _score(self, way: Way) -> tuple[float | None, float | None, float]:
        """Share of answers that begin right, mean log-probability of the right ones, mean tokens of the prompts."""
        shown = way.prompts(self.model, self.processor, self.queries)
        made = batches(self.model, self.processor, shown, template=way.template, batch_size=self.batch_size)
        lengths: list[int] = []
        passing = _counted(made, lengths)
        if way.method is not None and type(way.method).answer is not Method.answer:
            deque(passing, maxlen=0)
            return None, None, sum(lengths) / len(lengths)
        scores = score(self.model, passing, *([] if way.method is None else [way.method]))
        return scores.accuracy, float(scores.log_prob.double().mean()), sum(lengths) / len(lengths)


def right(answers: Sequence[str], queries: Sequence[Example]) -> list[bool]:
    """Which answers are the right ones, outer spaces and case aside."""
    pairs = zip(answers, queries, strict=True)
    return [answer.strip().casefold() == query.answer.strip().casefold() for answer, query in pairs]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: the p with |share - p| <= z sqrt(p (1 - p) / trials).

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    share, z2 = successes / trials, Z_95**2 / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = Z_95 / (1 + z2) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    # At the two ends exactly, where rounding would leave the share outside.
    return (middle - half if successes else 0.0), (middle + half if successes < trials else 1.0)


def _counted(made: Iterable[Batch], lengths: list[int]) -> Iterator[Batch]:
    """The batches, with the tokens of each prompt noted as they pass."""
    for batch in made:
        mask = batch.inputs.get("attention_mask")
        shape = batch.inputs["input_ids"].shape
        lengths += [shape[1]] * shape[0] if mask is None else mask.sum(-1).tolist()
        yield batch
