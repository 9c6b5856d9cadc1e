"""A profile as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import write_whole
from ..memory.pictures import _matplotlib

if TYPE_CHECKING:
    from .head_map import HeadMap

WORDS = {
    "indirect_effect": "indirect effect on the answer",
    "ablation": "fall of the answer when ablated",
    "attention_image": "attention to pictures",
    "attention_text": "attention to text",
    "attention_demonstrations": "attention to demonstrations",
}


COLUMNS = 3


def words(found: HeadMap, measure: str) -> str:
    """A measure in words, with its unit where that is not a share."""
    text = WORDS.get(measure, measure)
    if is_share(measure):
        return text
    scale = found.options.get("scale") or ("probability" if measure == "indirect_effect" else "log_probability")
    unit = "nats" if scale == "log_probability" else scale
    return f"{text} ({unit}, first order)" if found.options.get("gradient") else f"{text} ({unit})"


def is_share(measure: str) -> bool:
    """Whether numbers lie between 0 and 1, rather than on both sides of 0."""
    return measure.startswith("attention_")


def limit(table: torch.Tensor) -> float:
    """The largest size of a number in a table, 1e-12 if there is none."""
    return max(float(table.abs().nan_to_num(0.0).max()), 1e-12)


def draw(found: HeadMap, path: Path, measures: Sequence[str]) -> None:
    """Write the tables of some measures beside each other.

    Raises:
        SteerError: matplotlib is not installed.
    """
    layers, heads = found.values[measures[0]].shape
    wide, high = min(3.2 + 0.32 * heads, 14.0), min(1.8 + 0.32 * layers, 14.0)
    columns = min(COLUMNS, len(measures))
    rows = -(-len(measures) // columns)
    figure = _matplotlib()(figsize=(wide * columns, max(high, 2.6) * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in places[len(measures) :]:
        axes.set_axis_off()
    for axes, measure in zip(places, measures, strict=False):
        _heat(figure, axes, found.values[measure], is_share(measure))
        axes.set_title(words(found, measure), fontsize=9)
    whose = "" if found.attention == "self" else f", {found.attention}-attention"
    figure.suptitle(f"{found.model_class}{whose}, {found.n} samples", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_whole(path, buffer.getvalue())


def _heat(figure: Any, axes: Any, table: torch.Tensor, share: bool) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis" if share else "RdBu_r"].with_extremes(bad="0.85")
    most = limit(table)
    drawn = axes.imshow(
        table.numpy(),
        cmap=colours,
        vmin=0.0 if share else -most,
        vmax=most,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    axes.set(xlabel="head", ylabel="layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(drawn, ax=axes)
