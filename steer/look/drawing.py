"""What was seen, as a PNG."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import ImageOps

from ..memory.pictures import _matplotlib
from .found import Look, Picture
from .words import head_words, picture_words, share_words, title, token_words

COLOURS = "viridis"
OPACITY = 0.7
BEFORE, AFTER = "0.62", "#2a788e"


def png(found: Look) -> bytes:
    """The file: a row for each view of each picture, and the tokens beside them.

    Raises:
        SteerError: matplotlib is not installed.
    """
    sides = found.sides
    shown = [(i, view, one.views) for i, one in enumerate(found.pictures) for view in range(len(one.views))]
    columns = 1 + len(sides)
    bars = min(5.2, 2.4 + 0.08 * max(len(token_words(one)) for one in found.tokens))
    size = (2.5 * columns + bars + 0.5, max(2.7 * len(shown), 0.6 + 0.12 * (1 + len(sides)) * len(found.tokens)) + 0.6)
    figure = _matplotlib()(figsize=size, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.5 * columns + 0.5, bars))
    axes = left.subplots(len(shown), columns, squeeze=False)
    for row, (index, view, views) in zip(axes, shown, strict=True):
        picture, tokens = found.pictures[index], views[view]
        maps = {name: side.mean(index) for name, side in sides.items()}
        most = max(*(float(one.max()) for one in maps.values()), 1e-12)
        row[0].imshow(picture.image)
        row[0].set_title(picture_words(index, len(found.pictures), view, len(views)), fontsize=9)
        for here, (name, weights) in zip(row[1:], maps.items(), strict=True):
            drawn = _overlay(here, picture, weights, tokens, most)
            here.set_title(f"{name}: {share_words(float(weights[tokens].sum()))} of the attention", fontsize=9)
        for here in row:
            here.set_xticks([])
            here.set_yticks([])
        # Beside the last map and as high as it is, whatever the picture's shape.
        bar = left.colorbar(drawn, cax=row[-1].inset_axes((1.03, 0, 0.05, 1)))
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.2g} %")
        bar.ax.tick_params(labelsize=7)
    _bars(right.subplots(), found)
    figure.suptitle(f"{title(found)}\n{head_words(found)}", fontsize=9, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    return buffer.getvalue()


def _overlay(axes: Any, picture: Picture, weights: torch.Tensor, tokens: torch.Tensor, most: float) -> Any:
    """The picture in grey, so that only attention has a colour."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    axes.imshow(ImageOps.grayscale(picture.image), cmap="gray", vmin=0, vmax=255)
    order = tokens[picture.seen[tokens]]
    edges = picture.boxes[order] - 0.5  # matplotlib counts pixels from their middles
    patches = [Rectangle((left, top), right - left, bottom - top) for left, top, right, bottom in edges.tolist()]
    drawn = PatchCollection(patches, cmap=COLOURS, alpha=OPACITY, linewidths=0)
    drawn.set_array(weights[order].numpy())
    drawn.set_clim(0, most)
    axes.add_collection(drawn)
    axes.set_xlim(-0.5, picture.image.width - 0.5)
    axes.set_ylim(picture.image.height - 0.5, -0.5)
    return drawn


def _bars(axes: Any, found: Look) -> None:
    """Each token's probability before, and after below it."""
    places = torch.arange(len(found.tokens))
    high = 0.8 / len(found.sides)
    named = [("before", BEFORE, [one.before for one in found.tokens])]
    if found.after is not None:
        named.append(("after", AFTER, [one.after or 0.0 for one in found.tokens]))
    for i, (name, colour, values) in enumerate(named):
        said = f"{name}: {found.sides[name].answer[:40]!r}"
        drawn = axes.barh((places + (i - (len(named) - 1) / 2) * high).numpy(), values, high, color=colour, label=said)
        axes.bar_label(drawn, [share_words(value) for value in values], fontsize=7, padding=2)
    axes.set_yticks(places.numpy(), [token_words(one) for one in found.tokens], fontsize=8, parse_math=False)
    axes.set_xlim(0, 1.25 * max(max(values) for _, _, values in named))
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title("probability of the first token", fontsize=9)
    legend = axes.legend(fontsize=8, loc="lower right", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
