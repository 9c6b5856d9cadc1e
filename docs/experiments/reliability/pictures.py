"""The two pictures of the page."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from protocol import ROWS
from reading import Records, _pooled, _sureness

from steer.suites import metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOUR = {
    "control": "#777777", "attention": "#0072b2", "decoding": "#d55e00", "heads": "#009e73", "residual": "#cc79a7",
    "fitted": "#e69f00", "library": "#56b4e9", "told": "#000000",
}  # fmt: skip


def write(records: Records, out: Path) -> None:
    """Both of them."""
    _objects(records, out / "reliability-objects.png")
    _risk(records, out / "reliability-risk.png")


def _objects(records: Records, path: Path) -> None:
    """What each row gains on adversarial negatives, with intervals, beside what it does to ordinary questions."""
    kinds = {"threshold": "control"} | {row.name: row.kind for row in ROWS}
    names = [name for name in kinds if records.has(name, "objects")]
    gains = {name: records.difference((name, "objects"), ("none", "objects"), "adversarial") for name in names}
    harms = {name: records.difference((name, "objects"), ("none", "objects"), "ordinary") for name in names}
    names.sort(key=lambda name: gains[name].value)
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.36 * len(names) + 1.4), sharey=True, layout="constrained")
    for axis, numbers, title in zip(
        axes, (gains, harms), ("gain on adversarial negatives", "change on ordinary questions"), strict=True
    ):
        for place, name in enumerate(names):
            n = numbers[name]
            axis.plot([n.low, n.high], [place, place], color=COLOUR[kinds[name]], linewidth=2)
            axis.plot(n.value, place, "o", color=COLOUR[kinds[name]])
        axis.axvline(0, color="#999999", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(names)), names)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
    here = [kind for kind in COLOUR if kind in {kinds[name] for name in names}]
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=COLOUR[kind], label=kind) for kind in here]
    axes[1].legend(handles=handles, fontsize=8, loc="lower left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _risk(records: Records, path: Path) -> None:
    """The share of wrong answers if only the surest are given."""
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    kinds = {"none": "control"} | {row.name: row.kind for row in ROWS}
    shown = [name for name in kinds if records.has(name, "objects")]
    styles: dict[str, int] = {}
    for name in shown:
        columns = _pooled(records._of((name, "objects"), "pope"))
        if np.isnan(columns["p"]).any():
            continue
        curve = metrics.risk_coverage(*_sureness(columns["p"], columns["yes"]))
        styles[kinds[name]] = styles.get(kinds[name], -1) + 1
        style = ("-", "--", ":", "-.")[styles[kinds[name]] % 4]
        colour, width = ("#000000", 2.0) if name == "none" else (COLOUR[kinds[name]], 1.3)
        axis.plot(curve.coverage, curve.risk, style, color=colour, linewidth=width, label=name)
    axis.set_xlabel("share of the questions that is answered, the surest first")
    axis.set_ylabel("share of wrong answers")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=130)
    plt.close(figure)
