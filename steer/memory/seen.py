"""What a choice of tokens is made from: one attention layer's queries, keys and values, and which of them are real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from steer_kernels.dispatch import best


@dataclass(frozen=True, eq=False)
class Seen:
    """One layer of one forward, after position embeddings and norms, as attention used it.

    Attributes:
        query: (B, H, W, d), the latest queries; in a prompt all of those of this forward.
        key, value: (B, H_kv, S, d) and (B, H_kv, S, d_v), everything that may be kept.
        scaling: what scores are multiplied by.
        slots: where each key stands in the sequence, int64 (B or 1, H_kv or 1, S).
        real: bool (B, H_kv, S): it is a token, neither padding nor an empty column.
        fresh: bool (B, H_kv, S): it came after the memory that was there before this choice, and may be dropped.
        query_slots: where each query stands, int64 (W,).
        query_real: bool (B, W): the query is no padding.
        layer, place, layers: the layer's index, its place among those that choose, and how many those are.
        images: gives bool (B, S_seq), true at image tokens of the sequence; raises where none can be told.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    slots: torch.Tensor
    real: torch.Tensor
    fresh: torch.Tensor
    query_slots: torch.Tensor
    query_real: torch.Tensor
    layer: int = 0
    place: int = 0
    layers: int = 1
    images: Callable[[], torch.Tensor] | None = None

    def visible(self, last: int | None = None) -> torch.Tensor:
        """Which keys each of the last queries sees, bool (B, H, W, S): real ones up to itself."""
        slots = self.query_slots if last is None else self.query_slots[-last:]
        seen = (self.slots[:, :, None] <= slots[:, None]) & self.real[:, :, None]
        return seen.repeat_interleave(self.query.shape[1] // self.key.shape[1], dim=1)

    def mass(self, last: int | None = None, reduce: str = "sum") -> torch.Tensor:
        """The attention that the last queries (all: None) give to each key, fp32 (B, H_kv, S), over a group's heads.

        No (H, W, S) matrix is kept. Queries that are padding do not count.
        """
        rows = self.query.shape[2] if last is None else min(last, self.query.shape[2])
        query, real = self.query[:, :, -rows:], self.query_real[:, -rows:]
        return best("token_scores", query.device.type)(
            query, self.key, self.scaling, self.visible(rows), reduce=reduce, rows=real
        )

    def image(self) -> torch.Tensor:
        """Which keys are image tokens, bool (B, H_kv, S).

        Raises:
            MappingError: the model's input does not tell them.
        """
        assert self.images is not None
        whole = self.images()
        slots = self.slots.expand(self.real.shape)
        return whole[:, None].expand(-1, slots.shape[1], -1).gather(2, slots) & self.real
