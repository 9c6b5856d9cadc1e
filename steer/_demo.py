"""What `steer demo` measures: a task told by demonstrations alone, with them in the prompt and with vectors instead."""

from __future__ import annotations

import copy
import inspect
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import zoo
from .errors import SteerError, unknown_name
from .examples import Example
from .fitting import track
from .method import Method
from .prompts import Batch, Prompt, encode, write
from .registry import create, method_class, methods
from .session import attach

DEV_QUERIES, TIMED_QUERIES, BATCH = 48, 15, 32


def shown() -> list[str]:
    """The methods that have settings for the demo, by name."""
    return [name for name in methods() if method_class(name).demo is not None]


@dataclass
class Row:
    """One way to answer the queries.

    Attributes:
        name: of the way.
        answers: what it said to each query.
        right: whether that was right.
        tokens: of a query's prompt, on average; None where the model is not asked.
        ms: median milliseconds for a query, alone in its batch.
        seconds: what fitting took.
    """

    name: str
    answers: list[str]
    right: list[bool]
    tokens: float | None = None
    ms: float | None = None
    seconds: float | None = None

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.right))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers = {"accuracy": self.accuracy, "standard_error": self.standard_error, "tokens_per_query": self.tokens}
        return {"name": self.name, **numbers, "ms_per_query": self.ms, "fit_seconds": self.seconds}


@dataclass
class Demo:
    """One run of the demo; what it found in `rows`, and in `settings` what the methods were given."""

    model: Any
    processor: Any
    task: str
    shots: int
    queries: int
    seed: int
    rows: list[Row] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = zoo.tasks()
        if self.task not in known:
            raise unknown_name("task", self.task, known)
        self.about = known[self.task]["about"]
        self.demonstrations = self._examples("demo", self.shots, "demonstrations")
        self.dev = self._examples("dev", DEV_QUERIES, "dev queries")
        self.asked = self._examples("test", self.queries, "queries")
        self._ways: list[tuple[Row, list[Prompt], list[Method]]] = []

    def run(self, names: Sequence[str]) -> None:
        """Ask in every way: the baselines, each method, a random vector in the first one's place; then time them."""
        made = [create(name, **(method_class(name).demo or {})) for name in names]
        self._baselines()
        self.settings = {method.name: dict(method.demo) for method in made if method.demo}
        for method in made:
            self._method(method)
        for method in [method for method in made if "vector" in method.tensors][:1]:
            self._control(method)
        self._time()

    def _baselines(self) -> None:
        """Without anything, with the demonstrations in the prompt, and by the commonest answer among them."""
        commonest = Counter(one.answer for one in self.demonstrations).most_common(1)[0][0]
        self._add("commonest answer", [commonest] * len(self.asked))
        self._measure("zero-shot", self._bare, [])
        shots = tuple(self.demonstrations)
        self._measure(f"{self.shots}-shot in context", [Prompt(one, shots) for one in self.asked], [])

    def _method(self, method: Method) -> None:
        """Fit a method on the demonstrations (what it chooses, on the dev pictures) and ask it the bare queries."""
        dev = {"dev": self.dev} if "dev" in inspect.signature(method.fit).parameters else {}
        start = time.perf_counter()
        method.fit(self.model, self.processor, self.demonstrations, seed=self.seed, **dev)
        seconds = time.perf_counter() - start
        self._measure(method.name, self._bare, [method]).seconds = seconds

    def _control(self, method: Method) -> None:
        """Put a random vector of the same length in place of a method's vector."""
        vector = method.tensors["vector"]
        noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(self.seed))
        control = copy.copy(method)
        control.tensors = {**method.tensors, "vector": noise / noise.norm() * vector.norm()}
        self._measure(f"random {method.name}", self._bare, [control])

    def _time(self) -> None:
        """Measure milliseconds per query, the ways taking turns."""
        taken: list[list[float]] = [[] for _ in self._ways]
        for query in track(range(min(TIMED_QUERIES, len(self.asked)) + 1), "timing"):
            for place, (_, prompts, attached) in enumerate(self._ways):
                batch = encode(self.model, self.processor, [prompts[query % len(prompts)]])
                taken[place].append(self._milliseconds(batch, attached))
        for (row, _, _), times in zip(self._ways, taken, strict=True):
            row.ms = statistics.median(times[1:])  # the first warms up

    @property
    def _bare(self) -> list[Prompt]:
        return [Prompt(one) for one in self.asked]

    def _examples(self, split: str, n: int, what: str) -> list[Example]:
        found = zoo.examples(self.task, split, n, seed=self.seed)
        if len(found) < n:
            raise SteerError(f"{n} {what} were asked for; {self.task!r} has {len(found)} pictures for them")
        return found

    def _measure(self, name: str, prompts: list[Prompt], methods: list[Method]) -> Row:
        answers: list[str] = []
        parts = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        with attach(self.model, *methods):
            for part in track(parts, f"asking, {name}"):
                answers += write(self.model, self.processor, part, batch_size=BATCH, max_new_tokens=2)
        tokens = encode(self.model, self.processor, parts[0]).inputs["attention_mask"].sum(-1).float().mean()
        row = self._add(name, [(answer.split() or [""])[0] for answer in answers])
        row.tokens = float(tokens)
        self._ways.append((row, prompts, methods))
        return row

    def _add(self, name: str, answers: Sequence[str]) -> Row:
        right = [said == query.answer for said, query in zip(answers, self.asked, strict=True)]
        self.rows.append(Row(name, list(answers), right))
        return self.rows[-1]

    def _milliseconds(self, batch: Batch, methods: list[Method]) -> float:
        with attach(self.model, *methods, measure="none"):
            start = time.perf_counter()
            self.model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
            return 1000 * (time.perf_counter() - start)
