"""How well the classes of pictures were named: over pictures, over classes, and how far confidence can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ._evaluating import wilson
from .suites import metrics

BINS = 15


@dataclass(frozen=True)
class Row:
    """How one way of naming classes did.

    Attributes:
        name: of the way.
        classes: K names, in the order of the columns.
        chances: the probabilities, fp32 (N, K) on the CPU.
        answers: the right class of each picture, int64 (N,).
        ms: milliseconds for a picture, on average, reading it included.
    """

    name: str
    classes: tuple[str, ...]
    chances: torch.Tensor
    answers: torch.Tensor
    ms: float

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each picture."""
        return [self.classes[place] for place in self.chances.argmax(-1).tolist()]

    @property
    def right(self) -> torch.Tensor:
        """Which of these are the right ones, bool (N,)."""
        return self.chances.argmax(-1) == self.answers

    @property
    def accuracy(self) -> float:
        """Over pictures."""
        return float(self.right.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson's)."""
        return wilson(int(self.right.sum()), len(self.answers))

    @property
    def per_class(self) -> dict[str, dict[str, float | int]]:
        """For each class that pictures are of: its accuracy, and how many there are."""
        found: dict[str, dict[str, float | int]] = {}
        for place, name in enumerate(self.classes):
            mine = self.right[self.answers == place]
            if len(mine):
                found[name] = {"accuracy": float(mine.double().mean()), "pictures": len(mine)}
        return found

    @property
    def macro(self) -> float:
        """The mean of the classes' accuracies, each counting once."""
        each = [one["accuracy"] for one in self.per_class.values()]
        return sum(each) / len(each)

    @property
    def calibration_error(self) -> float:
        """How far the likeliest class's probability is from how often it is right."""
        sure = self.chances.max(-1).values.double().clamp_max(1)
        return metrics.ece(sure.numpy(force=True), self.right.numpy(force=True), bins=BINS)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers: dict[str, Any] = {"accuracy": self.accuracy, "interval": list(self.interval), "macro": self.macro}
        numbers |= {"calibration_error": self.calibration_error, "pictures": len(self.answers)}
        return {"name": self.name, **numbers, "ms_per_picture": self.ms, "per_class": self.per_class}


def harmonic_mean(one: float, other: float) -> float:
    """2 a b / (a + b), 0 where one of them is."""
    return 2 * one * other / (one + other) if one and other else 0.0
