"""The page's pictures: accuracy by shots, base against new, one style after the other; and shots in each set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from protocol import MANY, OTHER_STYLE
from records import ACROSS, BASE, NEW, Records, few
from rows import COCOOP, COOP, COOP16, COPROMPT, MAPLE, NO_NEW, PHOTO, ROWS, SPECIFIC, TIP, UNHELD, ZERO

matplotlib.use("Agg")
from matplotlib import pyplot as plt

GREY = "#777777"
COLOURS = {
    TIP: "#8c564b", "clip_adapter": "#c49c94", COOP: "#d1495b", COOP16: "#9b2335", SPECIFIC: "#ff9896",
    "kgcoop": "#2ca02c", "prograd": "#98df8a", COCOOP: "#edae49", MAPLE: "#2e86ab", COPROMPT: "#111111",
    UNHELD: "#8d99ae", "promptsrc": "#9467bd", "ivlp": "#17becf", "vpt": "#7f7f00",
}  # fmt: skip
STRONG = (COOP, COOP16, COCOOP, MAPLE, COPROMPT)
MAIN = (COOP16, SPECIFIC, "kgcoop", MAPLE, COPROMPT, TIP)
"""In the small pictures, where all would be too many."""
MARKS = "os^vD<>pPX*hd"


def draw(records: Records, folder: Path) -> None:
    """Write prompts.png and prompts-sets.png, as far as there are numbers."""
    if records.scale is None:
        return
    looks = _looks(records)
    figure, axes = plt.subplots(1, 3, figsize=(19, 6), width_ratios=(1, 1, 0.9))
    _shots(axes[0], records, looks)
    _halves(axes[1], records, looks)
    _styles(axes[2], records, looks)
    handles = [
        plt.Line2D([], [], label=row, **{**style, "lw": 1.5 if ROWS[row].learns else 0}) for row, style in looks.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=6, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    _save(figure, folder / "prompts.png")
    _sets(records, looks, folder)


def _looks(records: Records) -> dict[str, dict[str, Any]]:
    assert records.scale is not None
    found = {}
    for place, row in enumerate(records.scale.rows):
        found[row] = {
            "color": COLOURS.get(row, GREY),
            "marker": MARKS[place % len(MARKS)],
            "ms": 7 if row in STRONG else 5,
        }
    return found


def _shots(axis: Any, records: Records, looks: dict[str, dict[str, Any]]) -> None:
    assert records.scale is not None
    for row, style in looks.items():
        found = [(one, records.mean(row, few(one))) for one in records.scale.shots]
        known = [(one, 100 * value) for one, value in found if value is not None]
        if not ROWS[row].learns and known and row in (ZERO, PHOTO):
            axis.axhline(known[0][1], color=GREY, ls="--" if row == ZERO else ":", lw=1.2)
            # the names of lines that nearly meet go on different sides of them
            side = "bottom" if row == ZERO else "top"
            axis.annotate(row, (MANY, known[0][1]), fontsize=8, color=GREY, va=side, ha="right")
        elif ROWS[row].learns and known:
            strong = row in STRONG
            axis.plot(*zip(*known, strict=True), lw=2 if strong else 1.1, alpha=1 if strong else 0.8, **style)
    axis.set(xscale="log", xlabel="shots a class", ylabel="accuracy, %", title="All classes, means over the sets")
    axis.set_xticks(records.scale.shots, [str(one) for one in records.scale.shots])
    axis.minorticks_off()
    axis.grid(alpha=0.25)


def _halves(axis: Any, records: Records, looks: dict[str, dict[str, Any]]) -> None:
    points = {}
    for row, style in looks.items():
        if row in NO_NEW:
            continue
        base, new = records.mean(row, BASE), records.mean(row, NEW)
        if base is not None and new is not None:
            points[row] = (100 * base, 100 * new)
            axis.plot(*points[row], ls="", **{**style, "ms": style["ms"] + 3})
    axis.set(xlabel="base classes, %", ylabel="new classes, %", title=f"Fitted on base classes, {MANY} shots")
    axis.grid(alpha=0.25)
    if not points:
        return
    axis.margins(0.12)
    axis.autoscale_view()
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    bases = np.linspace(left, right, 100)
    for mean in range(5, 100, 5):
        news = mean * bases / np.maximum(2 * bases - mean, 1e-9)
        inside = (news > low) & (news < high) & (2 * bases > mean)
        if inside.sum() > 5:
            axis.plot(bases[inside], news[inside], color="#cccccc", lw=0.8, zorder=0)
            last = np.flatnonzero(inside)[-1]
            axis.annotate(f"H={mean}", (bases[last], news[last]), fontsize=7, color="#999999", ha="right")
    axis.set(xlim=(left, right), ylim=(low, high))


def _styles(axis: Any, records: Records, looks: dict[str, dict[str, Any]]) -> None:
    found = {}
    for row in looks:
        pair = [
            records.compare([(row, few(MANY)), (row, ACROSS)], make, styled=True)
            for make in (lambda a, b: a, lambda a, b: b)
        ]
        if None not in pair:
            found[row] = [100 * one[0] for one in pair if one is not None]
    ordered = sorted(found, key=lambda row: found[row][1])
    for place, row in enumerate(ordered):
        axis.plot(found[row], [place, place], color="#bbbbbb", lw=2, zorder=0)
        axis.plot(found[row][0], place, "o", color=looks[row]["color"], mfc="none", ms=7)
        axis.plot(found[row][1], place, "o", color=looks[row]["color"], ms=7)
    axis.set_yticks(range(len(ordered)), ordered, fontsize=9)
    axis.set(xlabel="accuracy, %", title=f"Fitted on fluent (open), asked about {OTHER_STYLE} (full)")
    axis.grid(alpha=0.25, axis="x")


def _sets(records: Records, looks: dict[str, dict[str, Any]], folder: Path) -> None:
    assert records.scale is not None
    figure, axes = plt.subplots(2, 4, figsize=(17, 7.5))
    for axis, name in zip(axes.flat, records.scale.sets, strict=False):
        zero = records.one(name, ZERO, few(MANY))
        if zero is not None:
            axis.axhline(100 * zero, color=GREY, ls="--", lw=1.2)
        for row in [row for row in MAIN if row in looks] or list(looks):
            found = [(one, records.one(name, row, few(one))) for one in records.scale.shots]
            known = [(one, 100 * value) for one, value in found if value is not None]
            if known and ROWS[row].learns:
                axis.plot(*zip(*known, strict=True), label=row, **{**looks[row], "ms": 5})
        axis.set(xscale="log", title=name)
        axis.set_xticks(records.scale.shots, [str(one) for one in records.scale.shots])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    rest = list(axes.flat)[len(records.scale.sets) :]
    for axis in rest:
        axis.axis("off")
    if rest:
        handles.append(plt.Line2D([], [], color=GREY, ls="--"))
        rest[-1].legend(handles, [*labels, ZERO], loc="center", frameon=False)
    figure.supxlabel("shots a class", fontsize=10)
    figure.supylabel("accuracy on all classes, %", fontsize=10)
    figure.tight_layout(rect=(0.015, 0.01, 1, 1))
    _save(figure, folder / "prompts-sets.png")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
