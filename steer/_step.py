"""One intervention (or recording) at one place, compiled: everything looked up, nothing left to decide but the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch.compiler import is_compiling

from ._frame import NONE, Frame, Rows
from ._tracker import Tracker
from .errors import InterventionError, MappingError
from .gates import Gate, Reading
from .ops import BoundOp
from .positions import Positions

Measure = Literal["first", "all", "none"]


@dataclass
class Place:
    """Where a step acts.

    Attributes:
        site, tower, layer, attention: the address; layer -1 where there is none.
        heads: the chosen heads, or None for all or where there are none.
        has_heads: whether the tensor is (..., T, H, d) rather than (..., T, D).
        asked: the chosen heads as the model counts them, where `heads` are those of a process that holds some only.
    """

    site: str
    tower: str
    layer: int
    attention: str = "self"
    heads: Sequence[int] | None = None
    has_heads: bool = False
    asked: Sequence[int] | None = None

    def __str__(self) -> str:
        layer = f" layer {self.layer}" if self.layer >= 0 else ""
        cross = " cross-attention" if self.attention == "cross" else ""
        chosen = self.heads if self.asked is None else self.asked
        heads = f" heads {list(chosen)}" if chosen is not None else ""
        return f"{self.site} {self.tower}{layer}{cross}{heads}"


class Stage(Protocol):
    """Something at one place that takes a tensor as it passes, and perhaps its query and log-sum-exp."""

    @property
    def place(self) -> Place: ...

    @property
    def choice(self) -> RowChoice: ...

    @property
    def needs_query(self) -> bool: ...

    @property
    def needs_lse(self) -> bool: ...

    def __call__(
        self, x: torch.Tensor, query: torch.Tensor | None = None, lse: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Take x as `Step` does and give the new one."""
        ...


@dataclass
class Tally:
    """What happened at one place: calls with at least one row, rows, and how far the tensor moved.

    `largest` and `total` are the maximum and sum over rows of ||y - x|| / ||x||, over the `measured` rows.
    """

    calls: int = 0
    rows: int | torch.Tensor = 0
    traced: bool = False
    measured: int | torch.Tensor = 0
    total: torch.Tensor | None = None
    largest: torch.Tensor | None = None

    def count(self, rows: int) -> None:
        """Add one call; inside a compiled graph, only that there are calls."""
        if is_compiling():
            self.traced = True
            return
        self.calls += 1
        self.rows = self.rows + rows

    def measure(self, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Add the relative change from x to y, both (..., D) or (..., H, d)."""
        with torch.no_grad():
            change = (y.detach().float() - x.detach().float()).norm(dim=-1)
            change = change / x.detach().float().norm(dim=-1).clamp_min(1e-12)
            count: int | torch.Tensor = change.numel()
            if rows is not None and rows.shape == change.shape[: rows.ndim]:
                count = rows.sum() * (change.numel() // rows.numel())
            total, largest = change.sum(), change.max() if change.numel() else change.sum()
            self.measured = self.measured + count
            self.total = total if self.total is None else self.total + total.to(self.total.device)
            self.largest = (
                largest if self.largest is None else torch.maximum(self.largest, largest.to(self.largest.device))
            )


class RowChoice:
    """Positions on one tower, resolved once per forward and shared by every step that asks for them."""

    __slots__ = ("every", "positions", "slots", "tower", "tracker")

    def __init__(self, positions: Positions | None, tower: str, tracker: Tracker) -> None:
        self.positions, self.tower, self.tracker = positions, tower, tracker
        self.every = positions is None or positions.kind == "all"
        self.slots: torch.Tensor | None = None
        """Where the rows of a tensor of keys stand, while a step runs on the keys of a pruned cache."""

    def frame(self, batch: int, length: int, device: torch.device) -> Frame:
        """The frame of the running forward."""
        return self.tracker.frame(self.tower, batch, length, device)

    def one_each(self, batch: int, length: int, device: torch.device) -> bool:
        """Whether this forward holds at most one of the rows for each of the batch."""
        if self.positions is None or self.positions.kind not in ("last_prompt", "answer"):
            return False
        frame = self.frame(batch, length, device)
        return self.positions.kind == "last_prompt" or frame.offset + frame.length <= frame.prompt_length

    def key_frame(self, batch: int, total: int, device: torch.device, place: Place) -> Frame:
        """The frame that the keys of an attention belong to: the sequence so far, or another tower's states."""
        own = place.attention == "self" and place.tower in ("text", "text_encoder")
        if not own:
            return Frame(batch, total, device, prompt_length=total)
        return self.frame(batch, total, device)

    def of(self, batch: int, length: int, device: torch.device, place: Place) -> Rows:
        """The rows to touch in a tensor with `length` rows: None for all, NONE, a slice, or a mask (B, T)."""
        positions = self.positions
        if positions is None or self.every:
            return None
        if place.site in ("head_k", "head_v") and self.slots is not None:
            if self.slots.shape[1] != 1:
                raise MappingError(f"{place}: the heads kept different tokens, so no row is one position; use all rows")
            return at_slots(positions, self.key_frame(batch, length, device, place), self.slots, 1)[:, 0].expand(
                batch, -1
            )
        if place.site in ("head_k", "head_v"):
            return positions.resolve_keys(self.key_frame(batch, length, device, place), length)
        frame = self.frame(batch, length, device)
        if self not in frame.chosen:
            frame.chosen[self] = positions.resolve(frame)
        rows = frame.chosen[self]
        if frame.length == length:
            return rows
        if place.site == "logits" and length < frame.length:
            return _last(rows, frame, length)
        raise MappingError(
            f"{place}: the tensor has {length} rows and the forward {frame.length}; positions cannot be told apart here"
        )


def at_slots(positions: Positions, frame: Frame, slots: torch.Tensor, heads: int) -> torch.Tensor:
    """Which keys of a pruned cache are chosen, bool (B or 1, 1 or H, n), by where they stand (B or 1, H_kv or 1, n)."""
    chosen = positions.resolve_keys(frame, frame.offset + frame.length)
    if chosen is None:
        return torch.ones(1, 1, slots.shape[-1], dtype=torch.bool, device=slots.device)
    if slots.shape[1] != 1:
        slots = slots.repeat_interleave(heads // slots.shape[1], dim=1)
    batch = max(chosen.shape[0], slots.shape[0])
    whole = chosen[:, None].expand(batch, slots.shape[1], -1)
    return whole.gather(2, slots.expand(batch, -1, -1))


def _last(rows: Rows, frame: Frame, length: int) -> Rows:
    """The choice among the last `length` rows, where a model computes the scores of those only."""
    if rows is None or isinstance(rows, str):
        return rows
    if isinstance(rows, slice):
        skipped = frame.length - length
        low, high = max(rows.start - skipped, 0), rows.stop - skipped
        return slice(low, high) if high > low else NONE
    return rows[:, -length:]


_NOTHING = Reading()


@dataclass
class Step:
    """An op at one place; call it with the tensor to get the new one."""

    place: Place
    choice: RowChoice
    apply: BoundOp
    gate: Gate | None = None
    measure: Measure = "first"
    needs_frame: bool = False
    tally: Tally = field(default_factory=Tally)
    _unit: int = 0
    """How many numbers a row has, once there is nothing left to ask but the rows: no gate, no heads, measured."""
    _index: torch.Tensor | None = None
    """The chosen heads as a tensor, for an op that picks them itself."""

    @property
    def needs_query(self) -> bool:
        return self.gate is not None and self.gate.needs_query and self.place.site == "head_out"

    @property
    def needs_lse(self) -> bool:
        return self.gate is not None and self.gate.needs_lse

    def __call__(
        self, x: torch.Tensor, query: torch.Tensor | None = None, lse: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Take x (..., T, D) or (..., T, H, d), query (..., T, H, d) and lse (..., T, H); give the new x."""
        rows = None if self.choice.every else self._rows(x)
        if rows is None and self._unit and not is_compiling():
            tally = self.tally
            tally.calls += 1
            tally.rows += x.numel() // self._unit
            return self.apply(x, _NOTHING, None)
        if isinstance(rows, str):
            return x
        picked = slice(None) if rows is None or isinstance(rows, torch.Tensor) else rows
        mask = rows if isinstance(rows, torch.Tensor) else None
        inside = self.place.heads is not None and self._picks_heads
        heads = slice(None) if inside else self._heads()
        index = (..., picked, *([heads, slice(None)] if self.place.has_heads else [slice(None)]))
        part = x if not isinstance(rows, slice) and (inside or self.place.heads is None) else x[index]
        reading = Reading(heads=self._head_index(x.device) if inside else None)
        if self.needs_frame:
            reading.frame = self.choice.frame(x.shape[0], self._length(x), x.device)
        if self.gate is not None and (self.gate.needs_query or self.gate.needs_lse):
            source = x if self.place.site == "head_q" else query
            assert source is not None
            reading.query = source[index]
            reading.lse = None if lse is None else lse[index[:-1]]
        self._check_width(x)
        new = self.apply(part, reading, mask)
        if inside and self._measures():
            self._count(part[..., self._heads(), :], new[..., self._heads(), :], mask)
        else:
            self._count(part, new, mask)
        if part is x:
            return new
        out = x.clone()
        out[index] = new
        return out

    def _check_width(self, x: torch.Tensor) -> None:
        """Refuse a vector that does not fit: where a model carries several streams, no map says how wide they are."""
        width = getattr(self.apply, "width", None)
        if width not in (None, x.shape[-1]):
            raise InterventionError(
                f"{self.place}: a row of this tensor has {x.shape[-1]} numbers, and the vector given for it {width}"
            )

    def _measures(self) -> bool:
        return self.measure == "all" or (self.measure == "first" and self.tally.total is None)

    @property
    def _picks_heads(self) -> bool:
        return getattr(self.apply, "picks_heads", False)

    def _head_index(self, device: torch.device) -> torch.Tensor:
        if self._index is None or self._index.device != device:
            self._index = torch.tensor(list(self.place.heads or ()), device=device)
        return self._index

    def _rows(self, x: torch.Tensor) -> Rows:
        return self.choice.of(x.shape[0], self._length(x), x.device, self.place)

    def _length(self, x: torch.Tensor) -> int:
        return x.shape[-3 if self.place.has_heads else -2]

    def _heads(self) -> Any:
        heads = self.place.heads
        if heads is None:
            return slice(None)
        first, count = heads[0], len(heads)
        return slice(first, first + count) if list(heads) == list(range(first, first + count)) else list(heads)

    def _count(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None) -> None:
        tally = self.tally
        if is_compiling():
            tally.traced = True
            return
        tally.calls += 1
        if mask is not None:
            tally.rows = tally.rows + mask.sum()
        else:
            unit = x.shape[-1] * (x.shape[-2] if self.place.has_heads else 1)
            tally.rows = tally.rows + x.numel() // max(unit, 1)
        # rows that were added or taken away have not moved
        if x.shape == y.shape and self._measures():
            tally.measure(x, y, mask)
        if self.measure != "all" and self.place.heads is None and self.gate is None and not self.needs_frame:
            self._unit = max(x.shape[-1] * (x.shape[-2] if self.place.has_heads else 1), 1)


@dataclass
class Tap:
    """A recording at one place: hands the tensor on as it is."""

    place: Place
    choice: RowChoice
    keep: Callable[[Place, torch.Tensor], None]
    needs_query: bool = False
    needs_lse: bool = False

    def __call__(
        self, x: torch.Tensor, query: torch.Tensor | None = None, lse: torch.Tensor | None = None
    ) -> torch.Tensor:
        part = self.pick(x)
        if part is not None:
            self.keep(self.place, part)
        return x

    def pick(self, x: torch.Tensor) -> torch.Tensor | None:
        """The chosen heads and rows; None where this forward has none of the rows."""
        axis = -3 if self.place.has_heads else -2
        rows = self.choice.of(x.shape[0], x.shape[axis], x.device, self.place)
        if isinstance(rows, str):
            return None
        part = x if self.place.heads is None else x[..., list(self.place.heads), :]
        if isinstance(rows, slice):
            part = part.narrow(axis, rows.start, rows.stop - rows.start)
        elif isinstance(rows, torch.Tensor):
            part = part[rows]
        return part
