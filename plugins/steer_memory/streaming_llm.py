"""StreamingLLM: the first tokens and the newest ones (Xiao et al., ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from steer.memory import Scorer, Seen


@dataclass
class StreamingLLM(Scorer):
    """Keeps the sequence's first `sinks` tokens and the newest ones: the score is where a token stands.

    Source: https://arxiv.org/abs/2309.17453. The paper moves what is kept together, so that positions stay small; here
    a token keeps the position that it was read at, as in kvpress.
    """

    name: ClassVar[str] = "streaming_llm"
    paper: ClassVar[str] = "https://arxiv.org/abs/2309.17453"
    summary: ClassVar[str] = "Keeps the first tokens and the newest ones."

    def score(self, seen: Seen) -> torch.Tensor:
        """The slot of each token, (B, H_kv, S)."""
        return seen.slots.to(torch.float64).expand(seen.real.shape)
