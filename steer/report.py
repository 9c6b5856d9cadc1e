"""What a session did: which interventions fired where, on how many rows, and how far they moved the tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ._step import Place, Tally


@dataclass(frozen=True)
class Line:
    """One intervention at one place.

    Attributes:
        order: its number among the interventions attached, from 0.
        name: the intervention's label.
        site, tower, layer, attention, heads: the place; layer -1 where there is none, heads None for all.
        calls: forwards in which it touched at least one row (or might have, where a mask was made on the device).
        rows: rows touched, over all forwards; heads are not counted apart.
        mean_change, max_change: of ||y - x|| / ||x|| over the measured rows (and heads), None where not measured.
        traced: it is part of a compiled graph, whose calls are not counted.
    """

    order: int
    name: str
    site: str
    tower: str
    layer: int
    attention: str
    heads: tuple[int, ...] | None
    calls: int
    rows: int
    mean_change: float | None
    max_change: float | None
    traced: bool = False

    @property
    def fired(self) -> bool:
        return self.rows > 0 or self.traced


@dataclass(frozen=True)
class Report:
    """The lines of a session, in the order attached. Print it for a table."""

    lines: tuple[Line, ...]

    def never_fired(self) -> list[str]:
        """Labels of interventions that touched nothing anywhere."""
        orders: dict[int, tuple[str, bool]] = {}
        for line in self.lines:
            name, fired = orders.get(line.order, (line.name, False))
            orders[line.order] = (name, fired or line.fired)
        return [name for name, fired in orders.values() if not fired]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"interventions": [asdict(line) for line in self.lines]}

    def to_json(self) -> str:
        """The same as a string."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        head = ("#", "intervention", "tower", "layer", "heads", "calls", "rows", "mean change", "max change")
        body = [_cells(line) for line in self.lines]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        rows = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *body)]
        return "\n".join(rows) if body else "nothing attached"


def _cells(line: Line) -> tuple[str, ...]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    layer = "-" if line.layer < 0 else str(line.layer) + (" cross" if line.attention == "cross" else "")
    heads = "all" if line.heads is None else ",".join(map(str, line.heads))
    calls = "compiled" if line.traced else str(line.calls)
    changes = percent(line.mean_change), percent(line.max_change)
    return (str(line.order), line.name, line.tower, layer, heads, calls, str(line.rows), *changes)


def build(labels: Sequence[str], tallies: Sequence[Sequence[tuple[Place, Tally]]]) -> Report:
    """Read the tallies of a session."""
    lines = []
    for order, (label, places) in enumerate(zip(labels, tallies, strict=True)):
        lines += [_line(order, label, place, tally) for place, tally in places]
    return Report(tuple(lines))


def _line(order: int, label: str, place: Place, tally: Tally) -> Line:
    measured = int(tally.measured)
    mean = float(tally.total) / measured if tally.total is not None and measured else None
    largest = float(tally.largest) if tally.largest is not None and measured else None
    rows = int(tally.rows.item() if isinstance(tally.rows, torch.Tensor) else tally.rows)
    heads = None if place.heads is None else tuple(place.heads)
    where = (place.site, place.tower, place.layer, place.attention, heads)
    return Line(order, label, *where, tally.calls, rows, mean, largest, tally.traced)
