"""The page's picture: accuracy by what is kept, divergence by bound, and peak memory by context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from protocol import DELTAS, FULL, KEEPS, OURS, PUBLISHED, SCORERS, WHOLE, ZERO
from records import Cell, Records

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STRONG = {PUBLISHED: "#d1495b", OURS: "#111111", WHOLE: "#2e86ab"}
TITLES = {"A": "(A) pictures, 64 demonstrations", "B": "(B) words, 24 demonstrations"}
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MARKS = "osv^D<>pPX*"


def draw(settings: Mapping[str, Records], cells: Mapping[str, list[Cell]], folder: Path) -> None:
    """Write memory.png, as far as there are numbers."""
    if not settings:
        return
    figure, axes = plt.subplots(2, 2, figsize=(14, 9))
    for axis, name in zip(axes[0], ("A", "B"), strict=True):
        if name in settings:
            _accuracy(axis, settings[name], cells[name])
        axis.set_title(TITLES[name], fontsize=11)
    _legend(axes[0])
    _divergence(axes[1, 0], settings)
    _peak(axes[1, 1], settings)
    figure.tight_layout()
    figure.savefig(folder / "memory.png", dpi=130, metadata={"Software": None})
    plt.close(figure)


def _accuracy(axis: Any, records: Records, cells: Sequence[Cell]) -> None:
    shades = plt.get_cmap("tab20")
    colours = {**{name: shades(2 * i % 20 + (i > 9)) for i, name in enumerate(SCORERS)}, **STRONG}
    for place, (family, colour) in enumerate(colours.items()):
        strong = family in STRONG
        looks = {"color": colour, "marker": MARKS[place % len(MARKS)], "ms": 6 if strong else 4}
        for knob, values, line in (("keep", KEEPS, "-"), ("delta", DELTAS, ":")):
            points = _points(records, cells, [f"{family}:{knob}={value:g}" for value in values])
            if points:
                label = family if knob == "keep" else f"{family}, delta"
                style = {"ls": line, "lw": 2 if strong else 1, "alpha": 1 if strong else 0.75, "zorder": 2 + strong}
                axis.plot(*zip(*points, strict=True), label=label, **looks, **style)
    for row, line in ((FULL, "--"), (ZERO, ":")):
        found = records.accuracy(row, cells)
        if found is not None:
            axis.axhline(found[0], color="#888888", ls=line, lw=1)
            axis.annotate(row, (0.95, found[0]), fontsize=8, color="#666666", ha="right", va="bottom")
    axis.set(xlabel="share of the tokens that is kept", ylabel="accuracy", xscale="log", ylim=(-0.03, 1.05))
    least = 0.8 * min((line.get_xdata()[0] for line in axis.lines if line.get_label()[0] != "_"), default=SHARES[0])
    ticks = [share for share in SHARES if share > least]
    axis.set_xticks(ticks, [f"{share:g}" for share in ticks])
    axis.set_xlim(least, 1.05)
    axis.minorticks_off()
    axis.grid(alpha=0.25)


def _legend(axes: Sequence[Any]) -> None:
    """One for both, beside the second."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        axes[-1].legend(
            handles.values(), handles.keys(), fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False
        )


def _points(records: Records, cells: Sequence[Cell], names: Sequence[str]) -> list[tuple[float, float]]:
    found = []
    for name in names:
        accuracy, share = records.accuracy(name, cells), records.mean(name, cells, "share")
        if accuracy is not None and share is not None:
            found.append((share, accuracy[0]))
    return sorted(found)


def _divergence(axis: Any, settings: Mapping[str, Records]) -> None:
    for setting, filled in (("A", True), ("B", False)):
        records = settings.get(setting)
        for place, (family, colour) in enumerate(STRONG.items()):
            for delta in DELTAS if records else ():
                found = records.values(f"{family}:delta={delta:g}", records.cells, "held_out", "mean")
                # each at its own place beside the bound, so that none hides another
                at = [delta * (1 + 0.12 * (place - 1) + 0.05 * (not filled))] * len(found)
                looks = {"s": 16, "facecolors": colour if filled else "none", "edgecolors": colour, "alpha": 0.7}
                label = f"{family} ({setting})" if delta == DELTAS[1] else None
                axis.scatter(at, [max(one, 1e-6) for one in found], label=label, **looks)
    axis.plot((0.003, 0.08), (0.003, 0.08), color="#888888", ls="--", lw=1)
    axis.annotate("the bound", (0.003, 0.0031), fontsize=8, color="#666666", ha="left", va="bottom", rotation=22)
    axis.set(xscale="log", yscale="log", xlabel="delta", ylabel="held-out JS, one point a memory")
    axis.set_xticks(DELTAS, [f"{delta:g}" for delta in DELTAS])
    axis.minorticks_off()
    axis.set_title("Divergence from the whole context on held-out questions", fontsize=11)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def _peak(axis: Any, settings: Mapping[str, Records]) -> None:
    record = settings["A"].by_key.get("peak") if "A" in settings else None
    axis.set_title("Most bytes alive while a memory is built (A)", fontsize=11)
    if record is None:
        return
    parts = [int(one) for one in record["parts"]]
    every = list(record["parts"].values())
    colours = {"read at once": "#888888", **STRONG}
    for way, colour in colours.items():
        axis.plot(parts, [one[way]["peak"] / 1e6 for one in every], "o-", color=colour, label=f"{way}: peak")
    axis.plot(parts, [one["whole"] / 1e6 for one in every], "s--", color="#888888", label="the whole context's cache")
    axis.plot(parts, [one[OURS]["memory"] / 1e6 for one in every], "s--", color=STRONG[OURS], label=f"{OURS}: memory")
    axis.set(xscale="log", yscale="log", xlabel=f"parts of {record['chunk']} demonstrations", ylabel="MB")
    axis.set_xticks(parts, [str(one) for one in parts])
    axis.minorticks_off()
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
