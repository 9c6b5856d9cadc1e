"""PyramidKV: lower layers keep more tokens than higher ones (Cai et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from steer.errors import InterventionError
from steer.memory import Seen

from .snapkv import SnapKV


@dataclass
class PyramidKV(SnapKV):
    """SnapKV's scores, with budgets that fall linearly from the first layer to the last.

    For T tokens of which c are kept in the mean: low = c / beta and high = 2 c - low; if high >= T - window, high =
    T - window and low = 2 c - high. Layer l of L keeps high - l (high - low) / (L - 1), rounded; where low would be
    less than the window, and where there is one layer, it is c.

    Source: https://arxiv.org/abs/2406.02069; the schedule is kvpress'.

    Attributes:
        beta: how steep the pyramid is: the last layer keeps about c / beta.
    """

    name: ClassVar[str] = "pyramidkv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.02069"
    summary: ClassVar[str] = "SnapKV with more tokens in lower layers than in higher ones."

    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise InterventionError(f"beta of method {self.name!r} must be 1 or more; got {self.beta!r}")

    def count(self, seen: Seen) -> torch.Tensor:
        """The layer's own number for each row, int64 (B,)."""
        total = seen.total.double()
        mean = total * self.keep if self.budget is None else total.clamp(max=self.budget)
        low = mean / self.beta
        high = 2 * mean - low
        wide = high >= total - self.window
        high = torch.where(wide, total - self.window, high)
        low = torch.where(wide, 2 * mean - high, low)
        slope = (high - low) / max(seen.layers - 1, 1)
        steep = (total >= high) & (high >= low) & (low >= self.window) & (seen.layers > 1)
        return torch.where(steep, high - seen.place * slope, mean).round().long().clamp(min=1)
