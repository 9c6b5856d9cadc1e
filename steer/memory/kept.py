"""The keys and values that one layer kept, and which slots of the sequence they came from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steer_kernels import compact

from ..errors import InterventionError


@dataclass(frozen=True, eq=False)
class Kept:
    """What was kept of one layer's cache. Shared by everything that was made from it, and never written to.

    Where every row and head kept equally many, keys and values are (B, H_kv, n, d) and `index` is None. Otherwise they
    are (N, d), one after the other, and nothing is stored for what a shorter head does not have.

    Attributes:
        keys, values: (B, H_kv, n, d) and (B, H_kv, n, d_v), or (N, d) and (N, d_v).
        slots: where each kept key stood in the sequence, int64 (B or 1, H_kv or 1, n), ascending; 0 where not `valid`.
        index: which of the N belongs to each row, head and column, int64 (B, H_kv, n), or None.
        valid: bool (B, H_kv, n), false where a head has fewer than n, or None.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    index: torch.Tensor | None = None
    valid: torch.Tensor | None = None

    @property
    def batch(self) -> int:
        """How many rows."""
        return int((self.keys if self.index is None else self.index).shape[0])

    @property
    def heads(self) -> int:
        """How many key-value heads."""
        return int((self.keys if self.index is None else self.index).shape[1])

    @property
    def width(self) -> int:
        """Columns that attention sees: the largest number that a head kept."""
        return int(self.slots.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and the indices that go with them."""
        held = (self.keys, self.values, self.slots, self.index, self.valid)
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def counts(self) -> torch.Tensor:
        """How many keys each row and head kept, int64 (B, H_kv)."""
        if self.valid is not None:
            return self.valid.sum(-1)
        return torch.full((self.batch, self.heads), self.width, device=self.keys.device)

    def dense(self, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as attention takes them, (B', H_kv, n, d), for these rows of the batch."""
        if self.index is not None:
            index = self.index if rows is None else self.index[rows]
            return self.keys[index], self.values[index]
        if rows is None:
            return self.keys, self.values
        return self.keys[rows], self.values[rows]

    def slots_of(self, rows: torch.Tensor | None) -> torch.Tensor:
        """`slots` for these rows of the batch."""
        return self.slots if rows is None or self.slots.shape[0] == 1 else self.slots[rows]

    def valid_of(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """`valid` for these rows of the batch."""
        return self.valid if rows is None or self.valid is None else self.valid[rows]

    def __deepcopy__(self, memo: dict[int, object]) -> Kept:
        # nobody writes to it, so a copied cache shares it
        return self


def pick(keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, keep: torch.Tensor) -> Kept:
    """Keep some of a layer's keys and values, in the order in which they stand.

    Args:
        keys: (B, H_kv, S, d).
        values: (B, H_kv, S, d_v).
        slots: where each stood in the sequence, int64 (B or 1, H_kv or 1, S).
        keep: bool (B, H_kv, S), true for what is kept.

    Raises:
        InterventionError: `keep` does not fit, or some row and head would keep nothing.
    """
    if keep.dtype != torch.bool or keep.shape != keys.shape[:3]:
        raise InterventionError(
            f"a selection of keys must be a bool tensor like the keys without their width, {list(keys.shape[:3])}; "
            f"got {list(keep.shape)} {keep.dtype}"
        )
    counts = keep.sum(-1)
    most, least = int(counts.max()), int(counts.min())
    if least == 0:
        raise InterventionError("a selection must keep at least one key in every row and head")
    # where all heads keep the same, a column is one position: it is said once
    alike = slots.shape[1] == 1 and bool((keep == keep[:, :1]).all())
    if most != least:
        return _pick_flat(keys, values, slots, keep, alike)
    if alike and bool((keep == keep[:1]).all()):
        chosen = keep[0, 0].nonzero()[:, 0]
        return Kept(*compact(keys, values, chosen), slots.index_select(2, chosen))
    where = keep.nonzero()[:, 2].view(*counts.shape, most)
    return Kept(*compact(keys, values, where), _slots(slots, where, alike))


def _pick_flat(keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, keep: torch.Tensor, alike: bool) -> Kept:
    counts = keep.sum(-1)
    most = int(counts.max())
    column = torch.arange(most, device=keep.device)
    valid = column < counts[..., None]
    first = (counts.flatten().cumsum(0) - counts.flatten()).view(*counts.shape, 1)
    # a stable sort of "dropped" brings the kept columns to the front, in their order
    where = (~keep).to(torch.uint8).sort(dim=-1, stable=True).indices[..., :most]
    found = _slots(slots, where, alike)
    return Kept(
        *compact(keys, values, where, valid=valid),
        torch.where(valid[:, : found.shape[1]], found, 0),
        torch.where(valid, first + column, 0),
        valid,
    )


def _slots(slots: torch.Tensor, where: torch.Tensor, alike: bool) -> torch.Tensor:
    """The slots at these columns (B, H_kv, n), for one head where they are all alike."""
    where = where[:, :1] if alike else where
    return slots.expand(*where.shape[:2], -1).gather(2, where)
