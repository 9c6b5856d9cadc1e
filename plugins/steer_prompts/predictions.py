"""What `predict` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Predictions:
    """A class for each picture.

    Attributes:
        classes: the names, in the order of the columns.
        probabilities: fp32 (B, K) on the CPU; each row sums to 1.
    """

    classes: tuple[str, ...]
    probabilities: torch.Tensor

    @property
    def labels(self) -> list[str]:
        """The likeliest class of each picture."""
        return [self.classes[index] for index in self.probabilities.argmax(-1).tolist()]

    def __len__(self) -> int:
        return len(self.probabilities)

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """For each picture the likeliest classes with their probabilities, best first."""
        values, places = self.probabilities.topk(min(count, len(self.classes)), dim=-1)
        return [
            [(self.classes[place], value) for place, value in zip(row, chances, strict=True)]
            for row, chances in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"classes": list(self.classes), "labels": self.labels, "probabilities": self.probabilities.tolist()}
