"""Two pictures in one file: how near each row comes to copying, and how many times as long the others take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import KERNELS
from .rows import OTHERS, Row
from .table import PASSES, headline, thousands

NAMES = {"eager": "plain torch", "compiled": "torch.compile", "liger": "Liger-Kernel", "kvpress": "kvpress"}
COLOURS = {"eager": "#4c72b0", "compiled": "#dd8452", "liger": "#55a868", "kvpress": "#8172b3"}


def plot(path: Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the picture; its kind is that of the file's ending.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: KERNELS.index(row.kernel))
    near = [row for row in rows if row.of_copy is not None]
    fast = [row for row in rows if row.x_eager is not None and (row.large or row.direction in ("host", "graph"))]
    height = 1.5 + 0.2 * max(len(near), 1.3 * len(fast), 4)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, height), layout="constrained")
    _near(left, near)
    _fast(right, fast)
    figure.suptitle(headline(about), fontsize=9)
    temporary = path.with_name(f".writing-{path.name}")
    figure.savefig(temporary, dpi=100)
    pyplot.close(figure)
    os.replace(temporary, path)


def _near(axes: Any, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    shares = [row.of_copy for row in rows]
    gaps = [
        [row.of_copy - row.of_copy_low for row in rows],  # type: ignore[operator]
        [row.of_copy_high - row.of_copy for row in rows],  # type: ignore[operator]
    ]
    colours = ["#4c72b0" if row.large else "#a6b8d6" for row in rows]
    axes.barh(places, shares, xerr=gaps, color=colours, error_kw={"elinewidth": 0.8})
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(places, [_name(row) for row in rows], fontsize=6)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_title("bandwidth as a share of a copy of as many bytes (dark: rows that targets count)", fontsize=9)


def _fast(axes: Any, rows: Sequence[Row]) -> None:
    thick = 0.8 / len(OTHERS)
    for nth, other in enumerate(OTHERS):
        found = [(place, getattr(row, f"x_{other}")) for place, row in enumerate(rows)]
        found = [(place + (nth - 1.5) * thick, value) for place, value in found if value is not None]
        if found:
            at, values = zip(*found, strict=True)
            axes.barh(at, values, thick, color=COLOURS[other], label=NAMES[other])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=6)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    if rows:
        axes.legend(fontsize=7)
    axes.set_title("times as long as ours; right of the line ours is faster", fontsize=9)


def _name(row: Row) -> str:
    sizes = " ".join(f"{letter}={thousands(size)}" for letter, size in row.size.items())
    memory = f" ({row.memory})" if row.memory else ""
    return f"{row.kernel} {row.form}{memory} {PASSES.get(row.direction, row.direction)} {row.dtype} {sizes}"
