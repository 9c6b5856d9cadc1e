"""Where in a picture each image token looks, found by asking the processor.

The processor is shown pictures of the same size that say of each pixel where it is: ramps along one side. Whatever it
does with them, resize, crop, pad, cut into tiles or patches, each number that comes out tells the place that it came
from. Numbers that are the same for a black and a white picture are padding, and come from nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..errors import MappingError
from .edges import boxes_of, lattice_of
from .grids import grid_of, grouped
from .mosaics import mosaic_of

Array = npt.NDArray[Any]
LEVELS = 255
RAMPS = 4
"""At most, along one side: places are exact to a pixel for sides of up to RAMPS * LEVELS pixels."""


@dataclass(frozen=True)
class Look:
    """What one picture becomes.

    Attributes:
        runs: lengths of the runs of image tokens, in the order of the prompt.
        boxes: fp32 (n, 4), left, top, right and bottom of what each of them looks at; zeros where that is padding.
    """

    runs: tuple[int, ...]
    boxes: torch.Tensor


def look(processor: Any, size: tuple[int, int], image_id: int, options: dict[str, Any]) -> Look:
    """Where the image tokens of a picture of this size, (width, height), look."""
    shown = _Shown(processor, size, image_id, options)
    x, y = (shown.places(axis) for axis in (0, 1))
    cells = _cells(x, y, shown.runs)
    boxes = np.concatenate([boxes_of(*tile, size) for tile in cells])
    return Look(shown.runs, torch.from_numpy(boxes.astype(np.float32)))


def count(processor: Any, size: tuple[int, int], image_id: int, options: dict[str, Any]) -> int:
    """How many image tokens a picture of this size becomes."""
    return sum(_Shown(processor, size, image_id, options).runs)


class _Shown:
    """A processor with pictures of one size before it."""

    def __init__(self, processor: Any, size: tuple[int, int], image_id: int, options: dict[str, Any]) -> None:
        self._processor, self._size, self._options = processor, size, options
        out = self._show(np.zeros(size[::-1]))
        ids = np.asarray(out["input_ids"])[0]
        self.runs = _runs(ids == image_id)
        white = self._show(np.full(size[::-1], LEVELS))
        self._name = _pixels_of(out, white)
        self._black = _array(out[self._name])
        self._range = _array(white[self._name]) - self._black

    def places(self, axis: int) -> Array:
        """For each number of the pixels its place along a side, in pixels of the picture; nan for padding."""
        length = self._size[axis]
        ramps = min(RAMPS, math.ceil(length / LEVELS))
        along = (np.arange(length) + 0.5) / length * ramps * LEVELS
        total = np.zeros_like(self._black)
        with np.errstate(divide="ignore", invalid="ignore"):
            for ramp in range(ramps):
                # Each ramp stands on the shoulders of the one before. Resizing is linear, so the sum is one long ramp.
                levels = np.clip(along - ramp * LEVELS, 0, LEVELS)
                shape = (1, -1) if axis == 0 else (-1, 1)
                out = self._show(np.broadcast_to(levels.reshape(shape), self._size[::-1]))
                total += np.round((_array(out[self._name]) - self._black) / self._range * LEVELS)
        return np.where(np.abs(self._range) > 1e-4, total / (ramps * LEVELS) * length, np.nan)

    def _show(self, grey: Array) -> Any:
        picture = Image.fromarray(np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=-1))
        token = str(getattr(self._processor, "image_token", None) or "<image>")
        try:
            return self._processor(text=[token], images=[picture], return_tensors="pt", **self._options)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise MappingError(
                f"{type(self._processor).__name__} was shown a picture of {self._size[0]} x {self._size[1]} pixels, to "
                f"see where its numbers come from, and could not take it: {error}"
            ) from error


def _runs(chosen: Array) -> tuple[int, ...]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
    return tuple(int(n) for n in edges[1::2] - edges[::2])


def _pixels_of(black: Any, white: Any) -> str:
    """The name of the pixels among a processor's outputs: the one that differs between a black and a white picture."""
    changed = [
        name
        for name, value in black.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and (value.shape != white[name].shape or not torch.equal(value, white[name]))
    ]
    name = "pixel_values" if "pixel_values" in changed else changed[0] if len(changed) == 1 else None
    if name is None or black[name].shape != white[name].shape:
        raise MappingError(
            f"where the pixels are among the processor's outputs cannot be told; outputs: {sorted(black)}, "
            f"changed between a black and a white picture: {changed}"
        )
    return name


def _array(tensor: torch.Tensor) -> Array:
    return tensor.double().numpy()


def _cells(x: Array, y: Array, runs: Sequence[int]) -> list[tuple[Array, Array]]:
    """For each tile the places (cells, numbers) along x and y that its tokens hold, tokens in their order."""
    tokens = sum(runs)
    if x.ndim < 4 or math.prod(x.shape[:-3]) >= tokens:
        # a patch is a row: (rows, numbers), (1, rows, numbers) or (rows, channels, height, width)
        lead = x.ndim - (1 if x.ndim < 4 else 3)
        flat = [one.reshape(math.prod(x.shape[:lead]), -1) for one in (x, y)]
        seen = ~np.isnan(flat[0]).all(axis=1)
        return [_merged(flat[0][seen], flat[1][seen], tokens, runs)]
    tiles = [one.reshape(-1, *x.shape[-3:])[:, 0] for one in (x, y)]
    if len(runs) == 1 and (mosaic := mosaic_of(tiles[0], tiles[1], tokens)) is not None:
        return mosaic
    seen = ~np.isnan(tiles[0]).all(axis=(1, 2))
    rows, columns = grid_of(tokens, int(seen.sum()), x.shape[-2:], runs)
    side = x.shape[-2] // rows

    def cut(tile: Array) -> Array:
        used = tile[: rows * side, : columns * side].reshape(rows, side, columns, side)
        return used.transpose(0, 2, 1, 3).reshape(rows * columns, -1)

    return [(cut(a), cut(b)) for a, b in zip(tiles[0][seen], tiles[1][seen], strict=True)]


def _merged(x: Array, y: Array, tokens: int, runs: Sequence[int]) -> tuple[Array, Array]:
    """Rows of patches put together into tokens."""
    order = grouped(lattice_of(x, y), tokens, runs)
    return x[order].reshape(tokens, -1), y[order].reshape(tokens, -1)
