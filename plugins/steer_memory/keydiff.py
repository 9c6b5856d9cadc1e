"""KeyDiff: keys that differ most from the others are kept (Park et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity, normalize

from steer.memory import Scorer, Seen


@dataclass
class KeyDiff(Scorer):
    """Keeps the keys that are least like the mean direction: s_j = -cos(k_j, mean over real keys i of k_i / ||k_i||).

    No query is needed. Source: https://arxiv.org/abs/2504.15364.
    """

    name: ClassVar[str] = "keydiff"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.15364"
    summary: ClassVar[str] = "Keeps the keys that are least like the others."

    def score(self, seen: Seen) -> torch.Tensor:
        """Minus the cosine with the head's mean direction, (B, H_kv, S)."""
        key = seen.key.to(torch.promote_types(seen.key.dtype, torch.float32))
        unit = normalize(key, dim=-1).masked_fill(~seen.real[..., None], 0)
        anchor = unit.sum(2, keepdim=True) / seen.real.sum(-1)[..., None, None].clamp_min(1)
        return -cosine_similarity(key, anchor, dim=-1)
