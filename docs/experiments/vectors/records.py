"""The records of a run, read: accuracies, intervals, and differences between rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import SEEDS

DRAWS = 2000


class Records:
    """Everything one setting's run wrote down."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self.by_key: dict[str, dict[str, Any]] = {one["key"]: one for one in map(json.loads, lines)}
        self.tasks = list(dict.fromkeys(key.split("/")[1] for key in self.by_key if "/" in key))

    def of(self, task: str, row: str) -> list[dict[str, Any]]:
        """One record for each seed; fewer while the run goes on."""
        name = next(iter(self.by_key), "?").split("/")[0]
        found = (self.by_key.get(f"{name}/{task}/{row}/{seed}") for seed in SEEDS)
        return [one for one in found if one is not None]

    def complete(self, row: str, tasks: Iterable[str]) -> list[str]:
        """The tasks that have every seed of a row."""
        return [task for task in tasks if len(self.of(task, row)) == len(SEEDS)]

    def right(self, task: str, row: str) -> list[np.ndarray]:
        """For each seed, whether each query was answered right, as 0 and 1."""
        return [np.array([int(bit) for bit in one["right"]], dtype=float) for one in self.of(task, row)]

    def accuracy(self, row: str, tasks: Sequence[str]) -> tuple[float, float, float] | None:
        """Mean over tasks and seeds, and its 95 % interval; None if some cell is missing."""
        if self.complete(row, tasks) != list(tasks) or not tasks:
            return None
        return interval([self.right(task, row) for task in tasks])

    def difference(self, first: str, second: str, tasks: Sequence[str]) -> tuple[float, float, float] | None:
        """Accuracy of one row less that of another, on the very same queries."""
        names = dict.fromkeys(tasks, (first, second))
        return self.difference_by_task(names)

    def difference_by_task(self, names: dict[str, tuple[str, str]]) -> tuple[float, float, float] | None:
        """The same where each task has its own two rows."""
        if not names or any(len(self.of(task, row)) < len(SEEDS) for task, pair in names.items() for row in pair):
            return None
        pairs = {task: [self.right(task, row) for row in rows] for task, rows in names.items()}
        return interval([[a - b for a, b in zip(*both, strict=True)] for both in pairs.values()])

    def best(self, task: str, among: Iterable[str], searched: str | None = None) -> str | None:
        """The row that did best on dev, with its best try."""
        name = next(iter(self.by_key), "?").split("/")[0]
        prefix = f"{name}/{searched or task}/try/"
        found = []
        for row in among:
            tries = [one for key, one in self.by_key.items() if key.startswith(f"{prefix}{row}/")]
            if tries and self.of(task, row):
                found.append((max((one["accuracy"], one["log_prob"]) for one in tries), row))
        return max(found)[1] if found else None


def interval(values: Sequence[Sequence[np.ndarray]]) -> tuple[float, float, float]:
    """Mean over tasks of the mean over seeds of queries; 95 % bootstrap over seeds and, within them, queries."""
    rng = np.random.default_rng(0)
    totals = np.zeros(DRAWS)
    for seeds in values:
        means = np.stack([one[rng.integers(0, len(one), (DRAWS, len(one)))].mean(1) for one in seeds])
        chosen = rng.integers(0, len(seeds), (DRAWS, len(seeds)))
        totals += np.take_along_axis(means.T, chosen, axis=1).mean(1)
    mean = float(np.mean([np.mean([one.mean() for one in seeds]) for seeds in values]))
    low, high = np.percentile(totals / len(values), [2.5, 97.5])
    return mean, float(low), float(high)
