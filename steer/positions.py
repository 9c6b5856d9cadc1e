"""Which rows of a sequence an intervention touches, counted in absolute positions.

The same rows are meant with and without a KV cache, with left or right padding, in a batch or alone: index 0 is the
first real token of a row, and a padded row is never an indexed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ._frame import NONE, Frame, Rows
from .errors import InterventionError

__all__ = ["Positions", "all", "answer", "generated", "image", "index", "last_prompt", "mask", "prompt", "span", "text"]

_builtin_all = all

Kind = Literal["all", "prompt", "generated", "last_prompt", "answer", "image", "text", "index", "span", "mask"]


@dataclass(frozen=True)
class Positions:
    """A choice of rows; build one with the functions of this module.

    Attributes:
        kind: what is chosen.
        indices: absolute positions, for `index`.
        start, stop: the half-open range of absolute positions, for `span`; `stop` None means to the end.
        rows: a bool tensor (B, S) or (S,), for `mask`; rows past its end are not chosen.
    """

    kind: Kind = "all"
    indices: tuple[int, ...] = ()
    start: int = 0
    stop: int | None = None
    rows: torch.Tensor | None = None

    @property
    def needs_frame(self) -> bool:
        """Whether the choice depends on the sequence so far, and not only on the tensor's length."""
        return self.kind != "all"

    def resolve(self, frame: Frame) -> Rows:
        """The chosen rows among those of this forward: None (all), NONE, a slice, or a bool mask (B, T)."""
        if self.kind == "all":
            return None
        if self.kind in ("prompt", "generated", "last_prompt", "answer"):
            return _by_prompt(self.kind, frame)
        if self.kind in ("image", "text"):
            chosen = frame.image_rows()
            return chosen if self.kind == "image" else ~chosen
        if self.kind == "mask":
            return _by_mask(self.rows, frame)
        wanted = range(self.start, _end(self.stop)) if self.kind == "span" else self.indices
        return _by_index(wanted, frame)

    def resolve_keys(self, frame: Frame, length: int) -> torch.Tensor | None:
        """The chosen rows among the `length` keys that attention sees now, as a bool mask (B or 1, S); None for all."""
        if self.kind == "all":
            return None
        whole = frame.of_keys()
        rows = self.resolve(whole)
        chosen = as_mask(rows, whole)
        if length <= chosen.shape[-1]:
            return chosen[:, chosen.shape[-1] - length :]
        return torch.nn.functional.pad(chosen, (0, length - chosen.shape[-1]))

    def __hash__(self) -> int:
        return hash((self.kind, self.indices, self.start, self.stop, id(self.rows)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Positions):
            return NotImplemented
        same = (self.kind, self.indices, self.start, self.stop) == (other.kind, other.indices, other.start, other.stop)
        return same and self.rows is other.rows


def all() -> Positions:
    """Every row, padding included."""
    return Positions("all")


def prompt() -> Positions:
    """Every row of the prompt: what the model was given before it wrote anything."""
    return Positions("prompt")


def generated() -> Positions:
    """Every row after the prompt."""
    return Positions("generated")


def last_prompt() -> Positions:
    """The last real row of the prompt."""
    return Positions("last_prompt")


def answer() -> Positions:
    """The rows that new tokens are written from: the last real row of the prompt and every row after it."""
    return Positions("answer")


def image() -> Positions:
    """Rows that hold image tokens."""
    return Positions("image")


def text() -> Positions:
    """Rows that hold no image tokens."""
    return Positions("text")


def index(*indices: int) -> Positions:
    """Rows at these absolute positions, from 0; negative positions have no meaning while text is being written."""
    if not indices or any(not isinstance(i, int) or i < 0 for i in indices):
        raise InterventionError(f"positions.index takes absolute positions >= 0, got {indices}")
    return Positions("index", indices=tuple(sorted(set(indices))))


def span(start: int, stop: int | None = None) -> Positions:
    """Rows at absolute positions `start` (included) to `stop` (excluded; None: to the end)."""
    if start < 0 or (stop is not None and stop < start):
        raise InterventionError(f"positions.span takes 0 <= start <= stop, got start={start}, stop={stop}")
    return Positions("span", start=start, stop=stop)


def mask(rows: torch.Tensor | Sequence[Sequence[bool]]) -> Positions:
    """Rows where a bool tensor (B, S) or (S,) is true, S counted as the model counts it, padding included."""
    tensor = torch.as_tensor(rows)
    if tensor.dtype != torch.bool or tensor.ndim not in (1, 2):
        got = f"{list(tensor.shape)} {tensor.dtype}"
        raise InterventionError(f"positions.mask takes a bool tensor (B, S) or (S,), got {got}")
    return Positions("mask", rows=tensor)


def as_mask(rows: Rows, frame: Frame) -> torch.Tensor:
    """Any resolved choice as a bool mask (B, T)."""
    if isinstance(rows, torch.Tensor):
        return rows
    full = torch.zeros(frame.batch, frame.length, dtype=torch.bool, device=frame.device)
    if rows is None:
        return ~full
    if isinstance(rows, slice):
        full[:, rows] = True
    return full


_FOREVER = 1 << 62


def _end(stop: int | None) -> int:
    return _FOREVER if stop is None else stop


def _clip(start: int, stop: int, frame: Frame) -> Rows:
    """The part of the slot range [start, stop) that lies in this forward."""
    low, high = max(start - frame.offset, 0), min(stop - frame.offset, frame.length)
    if low >= high:
        return NONE
    return None if (low, high) == (0, frame.length) else slice(low, high)


def _by_prompt(kind: str, frame: Frame) -> Rows:
    end = frame.prompt_length
    if kind == "prompt":
        return _clip(0, end, frame)
    if kind == "generated":
        return _clip(end, _FOREVER, frame)
    if frame.offset >= end:
        return NONE if kind == "last_prompt" else None
    if frame.offset + frame.length < end:
        return NONE
    last = frame.last_prompt_slot()
    if isinstance(last, int):
        return _clip(last, last + 1 if kind == "last_prompt" else _FOREVER, frame)
    slots = torch.arange(frame.offset, frame.offset + frame.length, device=frame.device)
    chosen = slots[None, :] == last[:, None]
    return chosen if kind == "last_prompt" else chosen | (slots >= end)


def _by_index(wanted: Sequence[int], frame: Frame) -> Rows:
    absolute = frame.absolute()
    if absolute is None:
        if isinstance(wanted, range):
            return _clip(wanted.start, wanted.stop, frame)
        here = [i - frame.offset for i in wanted if frame.offset <= i < frame.offset + frame.length]
        if not here:
            return NONE
        if len(here) == 1:
            return slice(here[0], here[0] + 1)
        chosen = torch.zeros(frame.batch, frame.length, dtype=torch.bool, device=frame.device)
        chosen[:, here] = True
        return chosen
    if isinstance(wanted, range):
        return (absolute >= wanted.start) & (absolute < wanted.stop)
    return torch.isin(absolute, torch.tensor(wanted, device=absolute.device))


def _by_mask(rows: torch.Tensor | None, frame: Frame) -> Rows:
    assert rows is not None
    given = (rows[None] if rows.ndim == 1 else rows).to(frame.device)
    if given.shape[0] not in (1, frame.batch):
        if frame.batch % given.shape[0]:
            raise InterventionError(f"positions.mask has {given.shape[0]} rows, the batch has {frame.batch}")
        given = given.repeat_interleave(frame.batch // given.shape[0], dim=0)
    here = given[:, frame.offset : frame.offset + frame.length]
    if here.shape[1] == 0:
        return NONE
    here = torch.nn.functional.pad(here, (0, frame.length - here.shape[1]))
    return here.expand(frame.batch, frame.length)
