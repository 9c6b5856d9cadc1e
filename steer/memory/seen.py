"""What a choice of tokens is made from: one attention layer's queries, keys and values, and which of them are real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from steer_kernels import token_scores


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
        read: what `total` gives, where some of those tokens are dropped already; None: all are here.
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
    read: torch.Tensor | None = None

    @property
    def total(self) -> torch.Tensor:
        """How many real tokens came after the memory that was there before, dropped ones included, int64 (B,)."""
        return (self.real & self.fresh).sum(-1).amax(1) if self.read is None else self.read

    def oldest(self, count: int) -> torch.Tensor:
        """The first `count` real keys of each row and head, bool (B, H_kv, S)."""
        return self.real & (self.real.cumsum(-1) <= count)

    def newest(self, count: int) -> torch.Tensor:
        """The last `count` real keys of each row and head, bool (B, H_kv, S)."""
        return self.real & (self.real.flip(-1).cumsum(-1).flip(-1) <= count)

    def watchers(self) -> torch.Tensor:
        """How many of the queries that are no padding see each key, int64 (B, H_kv, S)."""
        later = self.query_real.flip(-1).cumsum(-1).flip(-1)
        first = (self.slots - self.query_slots[0]).clamp(0, later.shape[-1] - 1).expand(self.real.shape)
        return later[:, None].expand(*first.shape[:2], -1).gather(2, first) * self.real

    def mass(self, last: int | None = None, reduce: Literal["sum", "mean", "max"] = "sum") -> torch.Tensor:
        """The attention that the last queries (all: None) give to each key, fp32 (B, H_kv, S), over a group's heads.

        Nothing of size (W, S) is made, neither attention nor a mask. Queries that are padding do not count: the last
        are the last real ones of each row.
        """
        query, slots, real = self._latest(self.query.shape[2] if last is None else last)
        return token_scores(
            query,
            self.key,
            self.scaling,
            rows=real,
            reduce=reduce,
            query_slots=slots,
            key_slots=self.slots,
            real=self.real,
        )

    def _latest(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, H, w, d), their slots (w,) or (B, w), and which are real (B, w)."""
        if count >= self.query.shape[2] or bool(self.query_real[:, -count:].all()):
            return self.query[:, :, -count:], self.query_slots[-count:], self.query_real[:, -count:]
        # padding stands at the end of some row: its last real queries end before it
        place = torch.arange(self.query.shape[2], device=self.query.device)
        rows = torch.where(self.query_real, place, place - place.numel()).topk(count, dim=-1).indices.flip(-1)
        where = rows[:, None, :, None].expand(-1, self.query.shape[1], -1, self.query.shape[3])
        return self.query.gather(2, where), self.query_slots[rows], self.query_real.gather(1, rows)

    def image(self) -> torch.Tensor:
        """Which keys are image tokens, bool (B, H_kv, S).

        Raises:
            MappingError: the model's input does not tell them.
        """
        assert self.images is not None
        whole = self.images()
        slots = self.slots.expand(self.real.shape)
        return whole[:, None].expand(-1, slots.shape[1], -1).gather(2, slots) & self.real
