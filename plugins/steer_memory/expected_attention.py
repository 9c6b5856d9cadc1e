"""Expected attention: what queries like those seen are expected to attend to (Devoto et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import reduce, repeat

from steer.memory import Scorer, Seen


@dataclass
class ExpectedAttention(Scorer):
    """Keeps the tokens that a query drawn from the seen queries' mean and covariance attends to in expectation.

    With mu_i and C_i of head i's queries over all real rows but the sinks, and s the scaling: e_ij = s mu_i . k_j +
    s^2 k_j^T C_i k_j / 2, the logarithm of the expected exp of a Gaussian query's score; softmax over the real keys but
    the sinks, mean over the heads of a group, times ||v_j||.

    Source: https://arxiv.org/abs/2510.00636. There, and in kvpress, mean and covariance are of queries before position
    embeddings, turned to the mean of the positions to come; that needs the model's own rotation. Here they are of the
    queries as attention uses them, each at its own position, which holds for any position embedding. Given turned
    queries the scores are kvpress'.

    Attributes:
        covariance: use C; False: the mean query alone.
        value_norm: multiply by the value's length.
    """

    name: ClassVar[str] = "expected_attention"
    paper: ClassVar[str] = "https://arxiv.org/abs/2510.00636"
    summary: ClassVar[str] = "Keeps the tokens that queries like those seen are expected to attend to."

    covariance: bool = True
    value_norm: bool = True

    def score(self, seen: Seen) -> torch.Tensor:
        """Expected attention times the value's length, (B, H_kv, S)."""
        wide = torch.promote_types(seen.query.dtype, torch.float32)
        counts = self._counts(seen)[:, None, :, None]
        query = seen.query.to(wide).masked_fill(~counts, 0)
        rows = counts.sum(2, keepdim=True).clamp_min(1)
        mean = query.sum(2, keepdim=True) / rows
        groups = query.shape[1] // seen.key.shape[1]
        key = repeat(seen.key.to(wide), "b h s d -> b (h g) s d", g=groups)
        expected = (key * mean).sum(-1) * seen.scaling
        if self.covariance:
            off = (query - mean).masked_fill(~counts, 0)
            spread = off.mT @ off / rows
            expected = expected + ((key @ spread) * key).sum(-1) * seen.scaling**2 / 2
        among = repeat(seen.real & ~seen.oldest(self.sinks), "b h s -> b (h g) s", g=groups)
        weights = expected.masked_fill(~among, torch.finfo(wide).min).softmax(-1).masked_fill(~among, 0)
        score = reduce(weights, "b (h g) s -> b h s", "mean", g=groups)
        return score * seen.value.norm(dim=-1, dtype=wide) if self.value_norm else score

    def _counts(self, seen: Seen) -> torch.Tensor:
        """Which queries are in the statistics, bool (B, W): real ones, without the sequence's first tokens."""
        if int(seen.query_slots[0]) > 0:
            return seen.query_real
        return seen.query_real & (seen.query_real.cumsum(-1) > self.sinks)
