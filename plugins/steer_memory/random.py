"""Tokens at random: what a rule has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from steer.memory import Scorer, Seen


@dataclass
class Random(Scorer):
    """Keeps tokens at random: uniform scores of a seed, the layer, the head and the token's place in the row.

    A row is scored alike alone and in a batch. The control of every comparison, as kvpress' press of this name.

    Attributes:
        seed: of the scores.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "https://github.com/NVIDIA/kvpress"
    summary: ClassVar[str] = "Keeps tokens at random, as a control."

    seed: int = 0

    def score(self, seen: Seen) -> torch.Tensor:
        """Uniform numbers, (B, H_kv, S)."""
        _, heads, total = seen.real.shape
        generator = torch.Generator().manual_seed(self.seed * 10_007 + seen.layer)
        # drawn head after head for each place, so that a longer row begins as a shorter one does
        drawn = torch.rand(total, heads, generator=generator).T.to(seen.key.device)
        place = (seen.real.cumsum(-1) - 1).clamp_min(0)
        return drawn.expand(seen.real.shape).gather(2, place)
