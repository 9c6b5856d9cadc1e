"""The rows as a table no wider than 160 columns; rich draws it where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .cases import KERNELS
from .rows import OTHERS, Row

WIDTH = 160
COLUMNS = (
    "kernel", "form", "pass", "sizes", "dtype", "ms", "GB", "GB/s", "copy", "of copy",
    "x eager", "x comp.", "x liger", "x kvpr.", "MB ours", "MB eager", "MB rivals",
)  # fmt: skip
PASSES = {"forward": "fwd", "forward+backward": "f+b"}


def cells(row: Row) -> tuple[str, ...]:
    """One row's texts, in the order of COLUMNS."""
    rivals = "/".join(
        number(getattr(row, f"peak_{name}_mb")) for name in OTHERS[1:] if getattr(row, f"peak_{name}_mb") is not None
    )
    return (
        row.kernel,
        f"{row.form} {row.memory}".rstrip(),
        PASSES.get(row.direction, row.direction),
        " ".join(f"{letter}={thousands(size)}" for letter, size in row.size.items()),
        row.dtype,
        number(row.ms) or "error",
        number(row.gb),
        number(row.gb_s),
        number(row.copy_gb_s),
        ratio(row.of_copy),
        *(ratio(getattr(row, f"x_{name}")) for name in OTHERS),
        number(row.peak_ours_mb),
        number(row.peak_eager_mb),
        rivals,
    )


def show(about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Print machine, table, errors and what was left out."""
    print(headline(about))
    rows = sorted(rows, key=lambda row: KERNELS.index(row.kernel))
    try:
        _rich(rows)
    except ImportError:
        print(plain(rows))
    for row in rows:
        if row.error:
            print(f"ERROR {row.kernel} {row.form} {row.direction} {row.sizes} {row.dtype}: {row.error}")
    for note in sorted({row.note for row in rows if row.note}):
        print(f"not raced: {note}")
    if about.get("left_out"):
        print(f"{len(about['left_out'])} rows were left out by the limit of time, the first {about['left_out'][0]!r}")


def headline(about: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = about["device"] if about["type"] == "cuda" else f"{about['device']}, {about['threads']} threads"
    return f"{where}; {about['cores']} cores; python {about['python']}, {versions}; {about['date']}"


def plain(rows: Sequence[Row]) -> str:
    """The table in plain text."""
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(" ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _rich(rows: Sequence[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=WIDTH if not sys.stdout.isatty() else None, markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, collapse_padding=True)
    for i, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if i < 5 else "right", no_wrap=i not in (1, 3))
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)


def number(value: float | None) -> str:
    """Three digits that count, or nothing."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def ratio(value: float | None) -> str:
    """Two places, or one above ten."""
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def thousands(size: int) -> str:
    """4k for 4096: what is a multiple of 1024 above it, and otherwise of 1000."""
    for unit in (1024, 1000):
        if size >= unit and size % unit == 0:
            return f"{size // unit}k"
    return str(size)
