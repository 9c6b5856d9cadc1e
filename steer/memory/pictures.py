"""Pictures of what a memory kept: a map of layers and tokens, and the patches of its pictures, layer by layer."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from ..errors import SteerError
from ..files import write_whole
from .kept import Kept

# What is drawn at most: a picture that one can still look at.
PICTURES, LAYERS = 8, 8
# What covers a patch that was dropped; white would look like a part of many pictures.
GREY = 0.78
# A picture's tokens, and in how many rows and columns they lie.
Patches = tuple[torch.Tensor, tuple[int, int]]


def kept_share(kept: Kept, length: int, row: int = 0) -> torch.Tensor:
    """The share of a layer's heads that kept each token of one row of the batch, fp32 (length,)."""
    slots = kept.slots.expand(kept.batch, kept.heads, -1)[row]
    counted = torch.ones_like(slots) if kept.valid is None else kept.valid[row].long()
    made = torch.zeros(kept.heads, length, dtype=torch.long, device=slots.device)
    return made.scatter_add_(1, slots, counted).float().mean(0).cpu()


def patches_of(images: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[Patches]:
    """Which tokens are each picture's, and how they lie: rows and columns of the nearest shape to the picture's.

    Args:
        images: bool (length,), true at image tokens.
        sizes: width and height of each picture, in the order in which they were read.

    Raises:
        SteerError: it cannot be told which tokens are whose, or they are no grid (tiles, separators, resampled).
    """
    tokens = images.nonzero()[:, 0]
    gaps = (tokens.diff() > 1).nonzero()[:, 0] + 1
    runs = list(tokens.tensor_split(gaps.tolist())) if tokens.numel() else []
    if len(runs) != len(sizes):
        if not sizes or not runs or tokens.numel() % len(sizes):
            raise SteerError(
                f"{tokens.numel()} image tokens in {len(runs)} runs are not those of {len(sizes)} pictures: give the "
                "data that the memory was built of"
            )
        runs = list(tokens.chunk(len(sizes)))
    return [(run, _grid(run.numel(), *size)) for run, size in zip(runs, sizes, strict=True)]


def _grid(count: int, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of so many patches, as near to a picture's shape as whole numbers come."""
    shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    off, best = min((abs(math.log(columns * height / (rows * width))), (rows, columns)) for rows, columns in shapes)
    if off > math.log(1.6):
        raise SteerError(
            f"{count} tokens of a picture of {width} x {height} are no grid of its shape (tiles, separators or a "
            "resampler), so they cannot be laid over it"
        )
    return best


def draw(
    layers: Mapping[int, Kept],
    images: torch.Tensor,
    mask: torch.Tensor,
    path: str | os.PathLike[str],
    shown: Sequence[Any] = (),
) -> None:
    """Write a PNG: what each layer kept, token by token, and, where pictures are given, which of their patches.

    Args:
        layers: what each layer of the text tower kept.
        images: bool (B, length), true at image tokens; the first row is drawn.
        mask: bool (B, length), false at padding.
        path: the file to write.
        shown: PIL images, all that the memory read, in order; the first eight are drawn.

    Raises:
        SteerError: matplotlib is not installed, there is nothing to draw, or the pictures are not the memory's.
    """
    figure_class = _matplotlib()
    if not layers or not mask.shape[1]:
        raise SteerError("this memory has no layer that can be pruned, or has read nothing: there is nothing to draw")
    shares = {index: kept_share(kept, mask.shape[1]) for index, kept in layers.items()}
    patches = patches_of(images[0].cpu(), [one.size for one in shown])[:PICTURES] if shown else []
    heights = [1.5 + 0.25 * len(shares), 1.3 * len(patches)]
    width = max(8.0, 1.4 * (1 + min(len(shares), LAYERS))) if patches else 11.0
    figure = figure_class(figsize=(width, sum(heights)), layout="constrained")
    if patches:
        above, below = figure.subfigures(2, 1, height_ratios=heights)
        _overlays(below, shares, patches, shown)
    else:
        above = figure
    _map(above, shares, images[0].cpu(), mask[0].cpu())
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_whole(Path(path), buffer.getvalue())


def _matplotlib() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SteerError(
            "pictures need matplotlib, which is not installed: pip install 'steer-vlm[experiments]'"
        ) from error
    return Figure


def _map(figure: Any, shares: Mapping[int, torch.Tensor], images: torch.Tensor, mask: torch.Tensor) -> None:
    """Layers down, tokens across; above it the image tokens."""
    strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(4, len(shares))))
    grid = torch.stack(list(shares.values()))
    grid[:, ~mask] = float("nan")
    strip.imshow(images[None].float().numpy(), aspect="auto", cmap="Oranges", vmin=0, vmax=1.3, interpolation="nearest")
    strip.set_yticks([0], ["pictures"])
    strip.tick_params(axis="x", length=0, labelbottom=False)
    drawn = axes.imshow(grid.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    # not more numbers than have room
    rows = range(0, len(shares), math.ceil(len(shares) / 20))
    axes.set_yticks(list(rows), [str(list(shares)[row]) for row in rows])
    axes.set_ylabel("layer")
    axes.set_xlabel("token")
    figure.colorbar(drawn, ax=[strip, axes], label="share of heads that kept it", pad=0.01)


def _overlays(
    figure: Any, shares: Mapping[int, torch.Tensor], patches: Sequence[Patches], shown: Sequence[Any]
) -> None:
    """A row for each picture: itself, then what each layer kept of it; dropped patches are covered."""
    count = min(len(shares), LAYERS)
    chosen = [list(shares)[round(i * (len(shares) - 1) / max(1, count - 1))] for i in range(count)]
    axes = figure.subplots(len(patches), 1 + count, squeeze=False)
    figure.suptitle("image patches that were kept, by layer", fontsize="medium")
    for row, (picture, (tokens, (rows, columns))) in enumerate(zip(shown, patches, strict=False)):
        for column, layer in enumerate([None, *chosen]):
            here = axes[row][column]
            here.imshow(picture.convert("RGB"), extent=(0, 1, 0, 1), aspect=picture.height / picture.width)
            here.set_xticks([])
            here.set_yticks([])
            if layer is None:
                continue
            kept = shares[layer][tokens]
            faded = torch.full((rows, columns, 4), GREY)
            faded[..., 3] = 0.9 * (1 - rearrange(kept, "(r c) -> r c", r=rows))
            here.imshow(
                faded.numpy(), extent=(0, 1, 0, 1), aspect=picture.height / picture.width, interpolation="nearest"
            )
            here.set_xlabel(f"{float(kept.mean()):.0%}", fontsize="small", labelpad=2)
            if row == 0:
                here.set_title(f"layer {layer}", fontsize="small")
