"""How well the classes of pictures were named: over pictures, over classes, and how far confidence can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._evaluating import wilson
from .suites import metrics

BINS = 15


@dataclass(frozen=True)
class Named:
    """What one picture was said to be of.

    Attributes:
        key: which picture.
        label: the likeliest class.
        probability: of that class.
        ms: milliseconds, the batch's divided by its pictures, reading them included.
    """

    key: str
    label: str
    probability: float
    ms: float


@dataclass(frozen=True)
class Row:
    """How one way of naming classes did.

    Attributes:
        name: of the way.
        classes: between which was decided.
        said: for each of N pictures.
        answers: the right class of each.
    """

    name: str
    classes: tuple[str, ...]
    said: Sequence[Named] = field(repr=False)
    answers: Sequence[str] = field(repr=False)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which of these are the right ones, bool (N,)."""
        return np.array([one.label == answer for one, answer in zip(self.said, self.answers, strict=True)])

    @property
    def accuracy(self) -> float:
        """Over pictures."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson's)."""
        return wilson(int(self.right.sum()), len(self.answers))

    @property
    def per_class(self) -> dict[str, dict[str, float | int]]:
        """For each class that pictures are of: its accuracy, and how many there are."""
        found: dict[str, dict[str, float | int]] = {}
        answers = np.array(self.answers)
        for name in self.classes:
            mine = self.right[answers == name]
            if len(mine):
                found[name] = {"accuracy": float(mine.mean()), "pictures": len(mine)}
        return found

    @property
    def macro(self) -> float:
        """The mean of the classes' accuracies, each counting once."""
        each = [one["accuracy"] for one in self.per_class.values()]
        return sum(each) / len(each)

    @property
    def calibration_error(self) -> float:
        """How far the likeliest class's probability is from how often it is right."""
        sure = np.minimum([one.probability for one in self.said], 1.0)
        return metrics.ece(sure, self.right, bins=BINS)

    @property
    def ms(self) -> float:
        """Milliseconds for a picture, on average."""
        return sum(one.ms for one in self.said) / len(self.said)

    def of(self, places: Sequence[int]) -> Row:
        """The same for some of the pictures."""
        return Row(self.name, self.classes, [self.said[i] for i in places], [self.answers[i] for i in places])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers: dict[str, Any] = {"accuracy": self.accuracy, "interval": list(self.interval), "macro": self.macro}
        numbers |= {"calibration_error": self.calibration_error, "pictures": len(self.answers)}
        return {"name": self.name, **numbers, "ms_per_picture": self.ms, "per_class": self.per_class}


def harmonic_mean(one: float, other: float) -> float:
    """2 a b / (a + b), 0 where one of them is."""
    return 2 * one * other / (one + other) if one and other else 0.0
