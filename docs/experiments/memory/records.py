"""The records of a run, read: accuracies, intervals, divergences, and differences between rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DRAWS = 2000
Interval = tuple[float, float, float]
Cell = tuple[str, int]  # a task and a number of demonstrations


class Records:
    """Everything one setting's run wrote down."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self.by_key: dict[str, dict[str, Any]] = {one["key"]: one for one in map(json.loads, lines)}
        self._of: dict[tuple[str, int, str], dict[int, dict[str, Any]]] = {}
        for key, record in self.by_key.items():
            if key.count("/") == 4:
                _, task, shots, row, seed = key.split("/")
                self._of.setdefault((task, int(shots), row), {})[int(seed)] = record
        self.cells: list[Cell] = list(dict.fromkeys((task, shots) for task, shots, _ in self._of))
        self.rows = list(dict.fromkeys(row for _, _, row in self._of))

    def of(self, cell: Cell, row: str) -> list[dict[str, Any]]:
        """One record for each sampling, in order."""
        return [one for _, one in sorted(self._of.get((*cell, row), {}).items())]

    def samplings(self, cell: Cell) -> int:
        """How many samplings the whole context was read in."""
        return len(self.of(cell, "full"))

    def has(self, row: str, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that have every sampling of a row."""
        return [cell for cell in cells if len(self.of(cell, row)) == self.samplings(cell) > 0]

    def accuracy(self, row: str, cells: Sequence[Cell]) -> Interval | None:
        """Mean over cells and samplings, and its 95 % interval; None where some cell is missing."""
        if not cells or self.has(row, cells) != list(cells):
            return None
        return interval([[_bits(one) for one in self.of(cell, row)] for cell in cells])

    def difference(self, first: str, second: str, cells: Sequence[Cell]) -> Interval | None:
        """Accuracy of one row less that of another, on the very same questions."""
        both = [cell for cell in self.has(first, cells) if cell in self.has(second, cells)]
        if not both or both != list(cells):
            return None
        pairs = [zip(self.of(cell, first), self.of(cell, second), strict=True) for cell in both]
        return interval([[_bits(a) - _bits(b) for a, b in pair] for pair in pairs])

    def mean(self, row: str, cells: Sequence[Cell], *path: str) -> float | None:
        """A number of the records, such as ("held_out", "mean"), in the mean over cells and samplings."""
        found = self.values(row, cells, *path)
        return float(np.mean(found)) if found else None

    def values(self, row: str, cells: Sequence[Cell], *path: str) -> list[float]:
        """The same, all of them."""
        found = []
        for cell in cells:
            for one in self.of(cell, row):
                value: Any = one
                for name in path:
                    value = value.get(name) if value is not None else None
                if value is not None:
                    found.append(float(value))
        return found


def _bits(record: dict[str, Any]) -> np.ndarray:
    return np.array([int(bit) for bit in record["right"]], dtype=float)


def interval(values: Sequence[Sequence[np.ndarray]]) -> Interval:
    """Mean over cells of the mean over samplings of questions; 95 % bootstrap over samplings and questions in them."""
    rng = np.random.default_rng(0)
    totals = np.zeros(DRAWS)
    for samplings in values:
        means = np.stack([one[rng.integers(0, len(one), (DRAWS, len(one)))].mean(1) for one in samplings])
        chosen = rng.integers(0, len(samplings), (DRAWS, len(samplings)))
        totals += np.take_along_axis(means.T, chosen, axis=1).mean(1)
    mean = float(np.mean([np.mean([one.mean() for one in samplings]) for samplings in values]))
    low, high = np.percentile(totals / len(values), [2.5, 97.5])
    return mean, float(low), float(high)


def interval_of_means(values: Sequence[float]) -> Interval:
    """The mean of some numbers and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(np.array(values), (DRAWS, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)
