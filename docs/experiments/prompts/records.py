"""The records of a run, read: accuracies by set and seed, means, differences between rows, and their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import MANY, ONE_STYLE, OTHER_STYLE, Job, Scale

DRAWS = 2000
Interval = tuple[float, float, float]
Where = tuple[str, str, int]  # kind, part of the test, shots
BASE, NEW = ("base-new", "base", MANY), ("base-new", "new", MANY)
ACROSS = ("few-shot", OTHER_STYLE, MANY)


def few(shots: int) -> Where:
    """All classes, after so many shots."""
    return "few-shot", "all", shots


class Records:
    """Everything one run wrote down.

    Attributes:
        scale: of the run; None where there is no record of it.
    """

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self.by_key: dict[str, dict[str, Any]] = {one["key"]: one for one in map(json.loads, lines)}
        about = self.by_key.get("about")
        self.scale = Scale.of(about["scale"]) if about else None

    def of(self, row: str, where: Where) -> np.ndarray | None:
        """Accuracies, (sets, seeds); None where one of them is missing. Sets of one style are in no other style."""
        if self.scale is None:
            return None
        kind, part, shots = where
        sets = [name for name in self.scale.sets if part != OTHER_STYLE or name not in ONE_STYLE]
        made = [[self._accuracy(Job(kind, name, row, seed, shots), part) for seed in self.scale.seeds] for name in sets]
        return None if any(one is None for line in made for one in line) or not made else np.array(made, dtype=float)

    def one(self, name: str, row: str, where: Where) -> float | None:
        """The mean over seeds in one set."""
        seeds = self.scale.seeds if self.scale else ()
        found = [self._accuracy(Job(where[0], name, row, seed, where[2]), where[1]) for seed in seeds]
        return None if None in found or not found else float(np.mean(found))  # type: ignore[arg-type]

    def mean(self, row: str, where: Where) -> float | None:
        """Over sets and seeds."""
        found = self.of(row, where)
        return None if found is None else float(found.mean())

    def compare(
        self, cells: Sequence[tuple[str, Where]], make: Callable[..., np.ndarray], styled: bool = False
    ) -> Interval | None:
        """What `make` gives of the mean accuracies of some cells, with its interval; None where a cell is missing.

        Args:
            cells: (row, where); all are drawn together, so that differences are paired.
            make: of so many arrays, one number for each draw.
            styled: leave out the sets that come in one style.
        """
        found = [self.of(row, where) for row, where in cells]
        if self.scale is None or any(one is None for one in found):
            return None
        keep = [i for i, name in enumerate(self.scale.sets) if not styled or name not in ONE_STYLE]
        whole = len(self.scale.sets)
        arrays = [one[keep] if len(one) == whole else one for one in found if one is not None]
        return interval(arrays, make)

    def difference(self, first: str, second: str, where: Where) -> Interval | None:
        """Accuracy of one row less that of another."""
        return self.compare([(first, where), (second, where)], lambda a, b: a - b)

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that were not run."""
        return [job for job in jobs if job.key not in self.by_key]

    def _accuracy(self, job: Job, part: str) -> float | None:
        record: Mapping[str, Any] = self.by_key.get(job.key, {})
        return record["right"][part] / record["of"][part] if part in record.get("right", {}) else None


def interval(arrays: Sequence[np.ndarray], make: Callable[..., np.ndarray]) -> Interval:
    """A number made of means over sets and seeds; 95 % bootstrap over sets and, within them, seeds.

    Args:
        arrays: each (sets, seeds); the same sets and seeds of all are drawn.
        make: from as many arrays (draws,) of means to one.
    """
    rng = np.random.default_rng(0)
    sets, seeds = arrays[0].shape
    of_sets = rng.integers(0, sets, (DRAWS, sets, 1))
    of_seeds = rng.integers(0, seeds, (DRAWS, sets, seeds))
    drawn = make(*(one[of_sets, of_seeds].mean((1, 2)) for one in arrays))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(make(*(one.mean() for one in arrays))), float(low), float(high)


def harmonic(base: Any, new: Any) -> Any:
    """The harmonic mean of two accuracies, numbers or arrays; 0 where both are."""
    return 2 * base * new / np.maximum(base + new, 1e-12)
