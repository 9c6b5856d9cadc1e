"""What is written about one row, in one schema for CSV and JSON."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .rivals import NAMES as RIVALS
from .timing import Spread

NEW = "new memory"
OTHERS = ("eager", "compiled", *RIVALS)


@dataclass
class Row:
    """One row; None where something was not measured, and `note` says why.

    Attributes:
        kernel, form, direction, sizes, dtype: which row; direction is `forward`, `forward+backward`, or for a single
            token `host` (the host's time a call) and `graph` (a call's share of a replayed graph).
        device, implementation: where it ran, and whether Triton or torch did.
        memory: `new memory` where on a CPU large blocks came from the operating system at every call.
        large, gated: whether the targets count it.
        ms, ms_low, ms_high: of one call; median and quartiles over rounds.
        gb: 1e9 bytes that must be moved.
        gb_s, copy_gb_s, read_gb_s: what that is a second; of a copy of as many bytes, read and written, in the same
            rounds; and of only reading them.
        of_copy, of_copy_low, of_copy_high, of_read: share of the two.
        x_NAME, x_NAME_low, x_NAME_high: how many times as long the other one took, in the same round.
        peak_ours_mb, peak_NAME_mb: 1e6 bytes beyond the inputs, at the most.
        rounds: how many.
        note: what others did not take part, and why.
        error: what is wrong; then no time is given.
    """

    kernel: str
    form: str
    direction: str
    sizes: str
    dtype: str
    device: str = ""
    implementation: str = ""
    memory: str = ""
    large: bool = False
    gated: bool = False
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    gb: float | None = None
    gb_s: float | None = None
    copy_gb_s: float | None = None
    read_gb_s: float | None = None
    of_copy: float | None = None
    of_copy_low: float | None = None
    of_copy_high: float | None = None
    of_read: float | None = None
    x_eager: float | None = None
    x_eager_low: float | None = None
    x_eager_high: float | None = None
    x_compiled: float | None = None
    x_compiled_low: float | None = None
    x_compiled_high: float | None = None
    x_liger: float | None = None
    x_liger_low: float | None = None
    x_liger_high: float | None = None
    x_kvpress: float | None = None
    x_kvpress_low: float | None = None
    x_kvpress_high: float | None = None
    peak_ours_mb: float | None = None
    peak_eager_mb: float | None = None
    peak_compiled_mb: float | None = None
    peak_liger_mb: float | None = None
    peak_kvpress_mb: float | None = None
    rounds: int | None = None
    note: str = ""
    error: str = ""

    def spread(self, name: str, values: Sequence[float], digits: int = 4) -> None:
        """Write median and quartiles under a name."""
        found = Spread.of(values)
        for suffix, value in (("", found.middle), ("_low", found.low), ("_high", found.high)):
            setattr(self, name + suffix, significant(value, digits))

    @property
    def size(self) -> dict[str, int]:
        """The sizes by letter."""
        return {letter: int(value) for letter, value in (part.split("=") for part in self.sizes.split())}


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many digits that count."""
    return float(f"{value:.{digits}g}")


def from_json(record: dict[str, Any]) -> Row:
    """A row as it was written; what this version does not know is left out."""
    known = {field.name for field in fields(Row)}
    return Row(**{name: value for name, value in record.items() if name in known})


def plain(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as plain data, what is None or empty left out."""
    return [{k: v for k, v in asdict(row).items() if v not in (None, "", False)} for row in rows]


def write_json(path: Path, about: dict[str, Any], rows: Iterable[Row]) -> None:
    """Machine and rows, what is None or empty left out."""
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False) for record in plain(rows))
    _replace(path, f'{{"about": {json.dumps(about, ensure_ascii=False)},\n "rows": [\n  {lines}\n]}}\n')


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """A line a row under the names of the fields."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in asdict(row).items()} for row in rows)
    os.replace(temporary, path)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
