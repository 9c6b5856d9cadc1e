"""SnapKV: the last queries of a prompt say which of its tokens are read (Li et al., NeurIPS 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import avg_pool1d

from steer.errors import InterventionError
from steer.memory import Scorer, Seen


@dataclass
class SnapKV(Scorer):
    """Keeps the tokens that the last `window` queries attend to, and the window's own.

    Score: s_j = mean over the window's queries w and the heads of a group of softmax_j(q_w . k_j / sqrt d), averaged
    over `kernel_size` neighbours; keys of the window and of an earlier memory count as 0 in that average.

    Source: https://arxiv.org/abs/2404.14469; as kvpress has it, which keeps no sinks.

    Attributes:
        window: how many of the newest queries observe; their tokens are kept.
        kernel_size: neighbours over which scores are averaged; odd, 1 for none.
    """

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2404.14469"
    summary: ClassVar[str] = "Keeps the tokens that a prompt's last queries attend to."

    window: int = 32
    kernel_size: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise InterventionError(
                f"method {self.name!r} needs a window of 1 or more and an odd kernel_size; "
                f"got {self.window} and {self.kernel_size}"
            )

    def newest(self) -> int:
        """The window."""
        return self.window

    def observers(self) -> int:
        """The window."""
        return self.window

    def score(self, seen: Seen) -> torch.Tensor:
        """Attention mass from the window, averaged over neighbours, (B, H_kv, S)."""
        mass = seen.mass(self.window, reduce="mean")
        mass = mass.masked_fill(seen.newest(self.window) | ~seen.fresh, 0)
        return avg_pool1d(mass, self.kernel_size, stride=1, padding=self.kernel_size // 2)
