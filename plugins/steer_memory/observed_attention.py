"""Observed attention, the rule of H2O: tokens that much attention went to are kept (Zhang et al., NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from steer.memory import Scorer, Seen


@dataclass
class ObservedAttention(Scorer):
    """Keeps the heavy hitters: tokens of the largest mean attention from all queries that see them.

    Score: s_j = sum over queries and the heads of a group of softmax_j(q_w . k_j / sqrt d), divided by how many queries
    see key j and by the heads. Where text is written, the queries are those since the last choice.

    Source: https://arxiv.org/abs/2306.14048. The paper divides by nothing and keeps as many recent tokens; kvpress
    divides, as here, and keeps none.

    Attributes:
        recent: how many of the newest tokens are kept besides.
    """

    name: ClassVar[str] = "observed_attention"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.14048"
    summary: ClassVar[str] = "Keeps the heavy hitters of attention (H2O)."

    recent: int = 0

    def newest(self) -> int:
        """`recent`."""
        return self.recent

    def score(self, seen: Seen) -> torch.Tensor:
        """Mean attention from the queries that see a key, (B, H_kv, S)."""
        groups = seen.query.shape[1] // seen.key.shape[1]
        return seen.mass() / (groups * seen.watchers()).clamp_min(1)
