"""Ops that write, add and take away whole rows of a sequence, and one that stands around the model's own call.

What they write can be given as a function, which is asked in every forward: for rows that depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.compiler import is_compiling

from .errors import InterventionError
from .sites import WIDTH_SITES

if TYPE_CHECKING:
    from ._params import Slot
    from .gates import BoundGate, Reading

Given = torch.Tensor | Callable[[], torch.Tensor]
Bound = Callable[[torch.Tensor, "Reading", "torch.Tensor | None"], torch.Tensor]


def _now(given: Given) -> torch.Tensor:
    return given if isinstance(given, torch.Tensor) else given()


def _batched(what: str, where: str, value: torch.Tensor, x: torch.Tensor, inner: int) -> torch.Tensor:
    """The value for each row of the batch: it may be one for all, or one for each."""
    if value.ndim == inner:
        return value.expand(x.shape[0], *value.shape)
    if value.ndim == inner + 1 and value.shape[0] == x.shape[0]:
        return value
    raise InterventionError(
        f"{what} has shape {list(value.shape)} at {where}, which has a batch of {x.shape[0]}; "
        f"expected {inner} dimensions, or one more in front for each of the batch"
    )


def _inside(slots: torch.Tensor, x: torch.Tensor, where: str) -> torch.Tensor:
    """Slots counted from the front, on x's device; those beyond the end are an error where asking costs nothing."""
    if (
        slots.device.type == "cpu"
        and slots.numel()
        and not is_compiling()
        and not -x.shape[1] <= int(slots.min()) <= int(slots.max()) < x.shape[1]
    ):
        raise InterventionError(
            f"slots go from {int(slots.min())} to {int(slots.max())} at {where}, which has {x.shape[1]} rows: "
            "was the model given other texts than the method's own?"
        )
    slots = slots.to(x.device)
    return torch.where(slots < 0, slots + x.shape[1], slots)


def _plain(op: str, gate: BoundGate | None) -> None:
    if gate is not None:
        raise InterventionError(f"ops.{op} takes no gate: a row is written or it is not")


@dataclass(frozen=True, eq=False)
class Write:
    """Vectors in the place of some rows, counted as they stand in the tensor, padding included.

    Attributes:
        vectors: (n, D), or (B, n, D) with vectors of its own for each of the batch; or a function that returns either.
        slots: which rows, int64 (n,) or (B, n); negative ones count from the end. Not to be written to in a session:
            a tensor is looked at once.
    """

    vectors: Given
    slots: Given
    sites: ClassVar[tuple[str, ...]] = ("token_embeddings", *WIDTH_SITES)

    def bind(self, slot: Slot, gate: BoundGate | None) -> Bound:
        _plain("Write", gate)
        seen: list[Any] = [None, 0, None, None]

        def places(x: torch.Tensor) -> torch.Tensor:
            """The slots on x's device, looked at again only where they or the length are others than last time."""
            slots = _now(self.slots)
            if is_compiling():
                return _inside(slots, x, slot.where)
            if seen[0] is not slots or seen[1:3] != [x.shape[1], x.device]:
                seen[:] = [slots, x.shape[1], x.device, _inside(slots, x, slot.where)]
            found: torch.Tensor = seen[3]
            return found

        def write(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            vectors = _batched("vectors", slot.where, _now(self.vectors), x, 2).to(device=x.device, dtype=x.dtype)
            slots = _batched("slots", slot.where, places(x), x, 1)
            if vectors.shape[1:] != (slots.shape[1], x.shape[-1]):
                raise InterventionError(
                    f"vectors has shape {list(vectors.shape)} at {slot.where}; expected "
                    f"{[x.shape[0], slots.shape[1], x.shape[-1]]} for {slots.shape[1]} slots"
                )
            index = slots.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            return x.scatter(1, index, vectors)

        return write


@dataclass(frozen=True, eq=False)
class Append:
    """Rows behind the last one of a tower that sees a picture whole; every row sees them.

    Attributes:
        vectors: (n, D), or (B, n, D); or a function that returns either.
    """

    vectors: Given
    sites: ClassVar[tuple[str, ...]] = ("embeddings",)

    def bind(self, slot: Slot, gate: BoundGate | None) -> Bound:
        _plain("Append", gate)

        def append(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            vectors = _batched("vectors", slot.where, _now(self.vectors), x, 2).to(device=x.device, dtype=x.dtype)
            if vectors.shape[-1] != x.shape[-1]:
                raise InterventionError(
                    f"vectors has width {vectors.shape[-1]} at {slot.where}; the tower has {x.shape[-1]}"
                )
            return torch.cat([x, vectors], dim=1)

        return append


@dataclass(frozen=True, eq=False)
class Drop:
    """The last `count` rows taken away again."""

    count: int
    sites: ClassVar[tuple[str, ...]] = ("resid_out",)

    def bind(self, slot: Slot, gate: BoundGate | None) -> Bound:
        _plain("Drop", gate)

        def drop(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            if not 0 < self.count < x.shape[1]:
                raise InterventionError(f"{self.count} rows cannot be dropped at {slot.where}, which has {x.shape[1]}")
            return x[:, : x.shape[1] - self.count]

        return drop


def unchanged(model: torch.nn.Module, value: Any) -> Any:
    """What is given, as it is."""
    return value


@dataclass(frozen=True, eq=False)
class Around:
    """Functions before and after the model's own call.

    Attributes:
        before: (model, arguments by name) -> arguments.
        after: (model, output) -> output.
    """

    before: Callable[[torch.nn.Module, dict[str, Any]], dict[str, Any]] = unchanged
    after: Callable[[torch.nn.Module, Any], Any] = unchanged
    sites: ClassVar[tuple[str, ...]] = ("call",)
