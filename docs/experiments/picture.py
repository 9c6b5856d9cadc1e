"""docs/picture.png: the front page's picture, drawn from records that other pages are made of.

Nothing is measured here.

Above, accuracy against the time of a query: every row of docs/results/vectors-A.jsonl (pictures) and vectors-B.jsonl
(words) that was timed and ran on all of its setting's tasks, means over tasks and three seeds, as the tables of
docs/results/vectors.md have them. Below, from docs/overhead.json, a decoded token of a Llama of 135 M parameters with a
vector added in each layer.

    python docs/experiments/picture.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parents[1]
# Okabe and Ito's colours, told apart under every common colour blindness.
VECTOR, PROMPT, BARE, INK = "#0072B2", "#D55E00", "#000000", "#222222"
PEER, FAINT = "#6b6b6b", "#d9d9d9"
# Where names stand beside their points, in points; whoever has none here is a dot without a name.
NAMED = {"A": {"joint": (9, -1), "hificl": (8, -11), "live": (-4, -17), "hyper_icl": (9, -4)}}
NAMED["A"] |= {"icv": (9, 3), "gate": (-4, 9)}
NAMED["B"] = {"live": (-10, 10), "joint": (9, -3), "hyper_icl": (9, -6), "hificl": (9, 0), "head_shift": (9, -9)}
NAMED["B"] |= {"icv": (9, 4)}
OVERHEAD = ("steer: residual shift", "hand-written hooks", "steering-vectors", "nnsight", "repsteer")


def page_table(setting: int, under: str) -> list[list[str]]:
    """The rows of a table of docs/results/vectors.md, which is made of the records."""
    text = (DOCS / "results" / "vectors.md").read_text(encoding="utf-8").split(f"\n{under}\n")[setting + 1]
    block = next(block for block in map(str.strip, text.split("\n\n")) if block[:1] == "|")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]


def points(setting: int) -> dict[str, tuple[float, float]]:
    """By row: the time of a query, the bare query's being 1, and the mean accuracy over all tasks."""
    costs, found = page_table(setting, "### What it costs"), page_table(setting, "### Accuracy")
    times = {row[0]: row[costs[0].index("time / bare")] for row in costs[2:]}
    means = {row[0]: re.sub(r"[*]", "", row[found[0].index("mean")]) for row in found[2:]}
    return {name: (float(times[name]), float(mean)) for name, mean in means.items() if "-" not in (mean, times[name])}


def ratios() -> dict[str, tuple[float, float, float]]:
    """A generation beside the bare one of the same round: median and quartiles in per cent more."""
    times = json.loads((DOCS / "overhead.json").read_text(encoding="utf-8"))["models"]["llama-135m"]["generation"]
    made = {}
    for name in OVERHEAD:
        each = [100 * (a / b - 1) for a, b in zip(times[name], times["bare"], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        made[name] = (low, middle, high)
    return made


def draw() -> plt.Figure:
    plt.rcParams.update({"font.size": 11, "font.family": "DejaVu Sans", "axes.edgecolor": FAINT, "text.color": INK})
    figure = plt.figure(figsize=(7.5, 6.6), facecolor="white")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.7, 1), hspace=0.5, wspace=0.14)
    grid.update(left=0.1, right=0.985, top=0.83, bottom=0.06)
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    accuracy(left, points(0), "A", "Pictures, tiny-vlm")
    accuracy(right, points(1), "B", "Words, SmolLM2-135M")
    right.set_yticklabels([])
    left.set_ylabel("accuracy")
    below = figure.add_subplot(grid[1, :])
    overhead(below, ratios())
    place = below.get_position()
    below.set_position((0.25, place.y0, 0.735, place.height))
    figure.text(
        0.02, 0.962, "What demonstrations teach, without their tokens in the prompt", fontsize=13.5, weight="bold"
    )
    for x, colour, words in ((0.02, VECTOR, "● vectors of steer"), (0.29, PROMPT, "■ demonstrations in the prompt")):
        figure.text(x, 0.915, words, color=colour)
    figure.text(0.7, 0.915, "◆ the question alone", color=BARE)
    return figure


def accuracy(axis: plt.Axes, rows: dict[str, tuple[float, float]], setting: str, title: str) -> None:
    shown = sorted((time, mean, name) for name, (time, mean) in rows.items() if name.startswith("icl-"))
    bare = rows["zero-shot"]
    axis.plot([t for t, _, _ in shown], [m for _, m, _ in shown], color=PROMPT, lw=1.5, zorder=2)
    for time, mean, name in shown:
        axis.scatter(time, mean, s=60, color=PROMPT, marker="s", zorder=3)
        words = f"{name[4:]} shots"
        axis.annotate(words, (time, mean), (0, 9), textcoords="offset points", ha="center", color=PROMPT)
    axis.scatter(*bare, s=60, color=BARE, marker="D", zorder=3)
    axis.annotate("zero-shot", bare, (-6, -17), textcoords="offset points", color=BARE)
    for name, at in rows.items():
        if name.startswith("icl-") or name == "zero-shot":
            continue
        axis.scatter(*at, s=46, color=VECTOR, edgecolor="white", lw=0.7, zorder=4)
        if name in NAMED[setting]:
            axis.annotate(name, at, NAMED[setting][name], textcoords="offset points", color=VECTOR)
    axis.set_xscale("log")
    axis.set_xlim(0.82, 10)
    axis.set_ylim(-0.1, 0.9)
    axis.set_xticks([1, 2, 4, 8], ["1 x", "2 x", "4 x", "8 x"])
    axis.set_xticks([], minor=True)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8])
    axis.set_xlabel("time of a query")
    axis.set_title(title, fontsize=11, loc="left")
    _plain(axis)


def overhead(axis: plt.Axes, rows: dict[str, tuple[float, float, float]]) -> None:
    for place, (name, (low, middle, high)) in enumerate(reversed(rows.items())):
        colour = VECTOR if name.startswith("steer:") else PEER
        axis.plot([low, high], [place, place], color=colour, lw=5, alpha=0.35, solid_capstyle="butt")
        axis.scatter(middle, place, s=46, color=colour, zorder=3)
        axis.annotate(f"{middle:+.1f} %", (high, place), (8, -4), textcoords="offset points", color=colour)
    names = ["steer" if name.startswith("steer:") else name for name in rows]
    axis.set_yticks(range(len(rows)), list(reversed(names)))
    axis.axvline(0, color=INK, lw=1)
    axis.set_xlim(-4, 16)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xticks([0, 5, 10], ["the bare model", "+5 %", "+10 %"])
    axis.set_title("A vector in every layer: time of a decoded token", fontsize=11, loc="left", x=-0.315)
    _plain(axis)


def _plain(axis: plt.Axes) -> None:
    axis.grid(axis="both", color=FAINT, lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def main(out: Path = DOCS / "picture.png") -> None:
    figure: Any = draw()
    figure.savefig(out, dpi=192, facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
