"""The two pictures of a setting: accuracy by kind of task, and accuracy against what a query costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from claims import Subject

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {
    "baseline": "#8a8a8a",
    "heuristic": "#b07aa1",
    "layer": "#4e79a7",
    "head": "#59a14f",
    "gated": "#e15759",
    "keys": "#f28e2b",
    "own": "#1f1f1f",
}


NEAR = 1.45  # times the bare query's time: who is below has a name in the column
TICKS = (1, 1.25, 2, 4, 7)


def draw(name: str, s: Subject, names: Sequence[str], folder: Path) -> None:
    """Write the pictures for which there are numbers."""
    for kind, paint in (("accuracy", _accuracy), ("cost", _cost)):
        figure = paint(s, names)
        if figure is not None:
            figure.savefig(folder / f"vectors-{name}-{kind}.png", dpi=150, metadata={"Software": None})
            plt.close(figure)


def _kind(s: Subject, name: str) -> str:
    return next((row.kind for row in s.rows if row.name == name), "baseline")


def _groups(s: Subject) -> dict[str, list[str]]:
    other = [task for task in s.tasks if task not in (*s.single, *s.adaptive)]
    groups = {"single": s.single, "conditional and mixed": s.adaptive, "not learned in context": other}
    return {title: tasks for title, tasks in groups.items() if tasks}


def _accuracy(s: Subject, names: Sequence[str]) -> plt.Figure | None:
    groups = _groups(s)
    shown = [one for one in names if any(s.records.accuracy(one, tasks) for tasks in groups.values())]
    if not shown:
        return None
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups) + 1.6, 0.28 * len(shown) + 1.3), sharey=True)
    for axis, (title, tasks) in zip([axes] if len(groups) == 1 else axes, groups.items(), strict=True):
        for place, one in enumerate(reversed(shown)):
            found = s.records.accuracy(one, tasks)
            if found is not None:
                mean, low, high = found
                colour = COLOURS[_kind(s, one)]
                axis.errorbar(
                    mean, place, xerr=[[max(0, mean - low)], [max(0, high - mean)]], fmt="o", ms=5, color=colour
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel("accuracy")
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(shown)), list(reversed(shown)))
    figure.tight_layout()
    return figure


def _cost(s: Subject, names: Sequence[str]) -> plt.Figure | None:
    points = [(one, s.time.get(one), s.records.accuracy(one, s.tasks)) for one in names]
    points = [(one, time, found) for one, time, found in points if time is not None and found is not None]
    if not points:
        return None
    figure, axis = plt.subplots(figsize=(7.5, 4.6))
    # The cheap ones lie close together: their names stand in a column beside them, in order of accuracy.
    near = sorted((point for point in points if point[1] < NEAR), key=lambda point: point[2][0])
    heights = _spread([point[2][0] for point in near], 0.052)
    for one, time, found in points:
        colour = COLOURS[_kind(s, one)]
        axis.scatter(time, found[0], color=colour, s=36, zorder=3)
        if time >= NEAR:
            axis.annotate(one, (time, found[0]), (0, 8), textcoords="offset points", fontsize=8, ha="center")
    for (one, time, found), height in zip(near, heights, strict=True):
        line = {"arrowstyle": "-", "color": COLOURS[_kind(s, one)], "lw": 0.6, "alpha": 0.6}
        axis.annotate(one, (time, found[0]), (NEAR * 1.02, height), fontsize=8, va="center", arrowprops=line)
    axis.set_xscale("log")
    most = 1.15 * max(point[1] for point in points)
    axis.set_xlim(0.95, most)
    axis.set_xticks([tick for tick in TICKS if tick < most], [f"{tick:g} x" for tick in TICKS if tick < most])
    axis.minorticks_off()
    axis.set_xlabel("time of a query, the bare query's is 1")
    axis.set_ylabel("mean accuracy over all tasks")
    axis.set_ylim(-0.05, 1.08)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """The values, in order, moved apart to at least a gap, as little as going up and coming back down allows."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else max(value, 0.0))
    for index in range(len(placed) - 1, -1, -1):
        limit = placed[index + 1] - gap if index + 1 < len(placed) else 1.04
        placed[index] = min(placed[index], limit)
    return placed
