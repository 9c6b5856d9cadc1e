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
    figure, axis = plt.subplots(figsize=(7, 4.2))
    taken: list[tuple[float, float]] = []
    for one, time, found in sorted(points, key=lambda point: point[2][0]):
        axis.scatter(time, found[0], color=COLOURS[_kind(s, one)], s=36, zorder=3)
        height = found[0]
        # Names that would lie on one another are moved up.
        while any(abs(time / x - 1) < 0.35 and abs(height - y) < 0.035 for x, y in taken):
            height += 0.036
        taken.append((time, height))
        axis.annotate(one, (time, found[0]), (time * 1.03, height), fontsize=8, va="center")
    axis.set_xscale("log")
    axis.set_xlabel("time of a query, the bare query's is 1")
    axis.set_ylabel("mean accuracy over all tasks")
    axis.set_ylim(-0.03, 1.05)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return figure
