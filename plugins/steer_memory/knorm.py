"""Knorm: keys of a small norm are kept (Devoto et al., EMNLP 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from steer.memory import Scorer, Seen


@dataclass
class Knorm(Scorer):
    """Keeps the keys of the smallest length: s_j = -||k_j||. No query is needed.

    Source: https://arxiv.org/abs/2406.11430.
    """

    name: ClassVar[str] = "knorm"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.11430"
    summary: ClassVar[str] = "Keeps the keys of the smallest norm."

    def score(self, seen: Seen) -> torch.Tensor:
        """Minus the key's length, (B, H_kv, S)."""
        return -seen.key.norm(dim=-1, dtype=torch.promote_types(seen.key.dtype, torch.float32))
