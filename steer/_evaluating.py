"""What `steer eval` measures: how often a model answers rightly, by itself, after demonstrations and with methods."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ._content import prompts_digest, weights_digest
from ._kept import Kept, way_digest
from ._together import Asking
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
class Said:
    """What was answered to one query.

    Attributes:
        key: which one it is.
        text: what was written.
        begins: whether the answer begins with the right one's tokens, whatever follows; None for a method that answers
            in a way of its own, which no single prompt stands for.
        log_prob: log-probability of the right answer; None as for `begins`.
        tokens: of the prompt.
        ms: milliseconds, the batch's divided by its queries, making inputs and writing included.
    """

    key: str
    text: str
    begins: bool | None
    log_prob: float | None
    tokens: int
    ms: float


@dataclass(frozen=True)
class Row:
    """How one way did.

    Attributes:
        name: of the way.
        said: for each query.
        right: whether that was the right answer, outer spaces and case aside.
    """

    name: str
    said: Sequence[Said] = field(repr=False)
    right: Sequence[bool] = field(repr=False)

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson's)."""
        return wilson(sum(self.right), len(self.right))

    @property
    def begins(self) -> float | None:
        """Share of the answers that begin right: much above the accuracy where a method keeps a model from ending."""
        return _mean([one.begins for one in self.said])

    @property
    def log_prob(self) -> float | None:
        """Mean log-probability of the right answer."""
        return _mean([one.log_prob for one in self.said])

    @property
    def tokens(self) -> float:
        """Of a prompt, on average."""
        return sum(one.tokens for one in self.said) / len(self.said)

    @property
    def ms(self) -> float:
        """Milliseconds for a query, on average."""
        return sum(one.ms for one in self.said) / len(self.said)

    def of(self, places: Sequence[int]) -> Row:
        """The same for some of the queries."""
        return Row(self.name, [self.said[i] for i in places], [self.right[i] for i in places])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers: dict[str, Any] = {"accuracy": self.accuracy, "interval": list(self.interval)}
        numbers |= {"begins_right": self.begins, "log_prob": self.log_prob}
        return {"name": self.name, **numbers, "tokens_per_query": self.tokens, "ms_per_query": self.ms}


@dataclass(frozen=True)
class Evaluation:
    """Queries that are asked in several ways, all under the same conditions.

    Attributes:
        model, processor: that is asked.
        queries: with their right answers.
        batch_size: queries in one forward.
        max_new_tokens: written at most.
        answers: the folder where answers are kept as they come, or None.
        shared: share the queries with the other processes that were launched, all of which measure.
    """

    model: Any
    processor: Any
    queries: Sequence[Example]
    batch_size: int = 16
    max_new_tokens: int = 8
    answers: Path | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        for index, query in enumerate(self.queries):
            if not query.answer:
                raise SteerError(f"example {index} ({query.question!r:.60}) has no answer to compare with")

    def measure(self, way: Way) -> Row:
        """Ask every query in one way.

        Raises:
            SteerError: the answers that are kept are of another run, or damaged.
        """
        keys = [str(place) for place in range(len(self.queries))]
        kept: Kept[Said] | None = None
        if self.answers is not None:
            asked = dict(zip(keys, self.queries, strict=True))
            kept = Kept(self.answers, Said, asked, weights_digest(self.model), self._digest(way), way.name)
        asking = Asking(keys, lambda places: self._batch(way, places), self.batch_size, way.name, kept)
        said = asking.answers(self.model, shared=self.shared)
        return Row(way.name, said, right([one.text for one in said], self.queries))

    def _batch(self, way: Way, places: Sequence[int]) -> list[Said]:
        queries = [self.queries[place] for place in places]
        start = time.perf_counter()
        texts = self._write(way, queries)
        ms = 1000 * (time.perf_counter() - start) / len(queries)
        rows = zip(places, texts, *self._score(way, queries), strict=True)
        return [Said(str(place), text, begins, chance, tokens, ms) for place, text, begins, chance, tokens in rows]

    def _write(self, way: Way, queries: Sequence[Example]) -> list[str]:
        options: dict[str, Any] = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        if way.method is not None:
            return way.method.answer(self.model, self.processor, queries, template=way.template, **options)
        shown = way.prompts(self.model, self.processor, queries)
        return write(self.model, self.processor, shown, template=way.template, **options)

    def _score(
        self, way: Way, queries: Sequence[Example]
    ) -> tuple[Sequence[bool | None], Sequence[float | None], list[int]]:
        """Whether answers begin right, log-probabilities of the right ones, and tokens of the prompts."""
        shown = way.prompts(self.model, self.processor, queries)
        made = batches(self.model, self.processor, shown, template=way.template, batch_size=self.batch_size)
        lengths: list[int] = []
        passing = _counted(made, lengths)
        if way.method is not None and type(way.method).answer is not Method.answer:
            deque(passing, maxlen=0)
            return [None] * len(queries), [None] * len(queries), lengths
        scores = score(self.model, passing, *([] if way.method is None else [way.method]))
        return scores.right.tolist(), scores.log_prob.double().tolist(), lengths

    def _digest(self, way: Way) -> str:
        told = way.demonstrations
        shown = None
        if told is not None:
            rule = {one.name: getattr(told, one.name) for one in fields(told) if one.name != "pool"}
            shown = {**rule, "pool": prompts_digest([Prompt(one) for one in told.pool])}
        options = {"template": way.template, "demonstrations": shown, "max_new_tokens": self.max_new_tokens}
        return way_digest(way.method, kind="examples", **options)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


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
