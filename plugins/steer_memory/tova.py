"""TOVA: the newest query drops what it attends to least (Oren et al., EMNLP 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from steer.memory import Scorer, Seen
from steer.memory.scorer import over_heads


@dataclass
class TOVA(Scorer):
    """Keeps the tokens that the last query attends to, the same in all heads of a layer; the last token stays.

    Score: s_j = mean over all heads of softmax_j(q_last . k_j / sqrt d).

    Source: https://arxiv.org/abs/2401.06104. The paper drops one token with every one that is written: `budget` and
    `every=1`.
    """

    name: ClassVar[str] = "tova"
    paper: ClassVar[str] = "https://arxiv.org/abs/2401.06104"
    summary: ClassVar[str] = "Keeps the tokens that the newest query attends to."

    def newest(self) -> int:
        """The last token."""
        return 1

    def observers(self) -> int:
        """The last query."""
        return 1

    def score(self, seen: Seen) -> torch.Tensor:
        """Mean attention of the last query over all heads, (B, H_kv, S)."""
        return over_heads(seen.mass(1, reduce="mean"), seen)
