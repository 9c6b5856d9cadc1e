"""Where the cells of a picture begin and end, from the places that their numbers come from; nan is padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .grids import Lattice

Array = npt.NDArray[Any]


def lattice_of(x: Array, y: Array) -> Lattice:
    """The row and the column of each cell, from the places (cells, numbers) of its numbers."""
    columns, rows = (_steps(*_ends(one))[1] for one in (x, y))
    return Lattice(rows, columns)


def boxes_of(x: Array, y: Array, size: tuple[int, int]) -> Array:
    """Left, top, right and bottom of each cell of a tile."""
    seen = ~np.isnan(x).all(axis=1)
    boxes = np.zeros((len(x), 4))
    sides = [_edges(places[seen], length) for places, length in zip((x, y), size, strict=True)]
    boxes[seen] = np.stack([sides[0][:, 0], sides[1][:, 0], sides[0][:, 1], sides[1][:, 1]], axis=1)
    return boxes


def _edges(places: Array, length: int) -> Array:
    """Where each cell begins and ends along a side: cells touch, half-way between their outermost numbers."""
    ranges, which = _steps(*_ends(places))
    half = _step(places) / 2
    edges = np.concatenate([[ranges[0, 0] - half], (ranges[:-1, 1] + ranges[1:, 0]) / 2, [ranges[-1, 1] + half]])
    # The ramps are exact to a pixel at best, so what ends within one of the border ends there.
    edges[np.abs(edges) < 1] = 0
    edges[np.abs(edges - length) < 1] = length
    edges = np.clip(edges, 0, length)
    return np.stack([edges[:-1], edges[1:]], axis=1)[which]


def _ends(places: Array) -> tuple[Array, Array]:
    return np.nanmin(places, axis=1), np.nanmax(places, axis=1)


def _steps(low: Array, high: Array) -> tuple[Array, Array]:
    """The distinct ranges of cells along a side, in order, and which of them each cell has."""
    pairs, which = np.unique(np.stack([low + high, low, high], axis=1), axis=0, return_inverse=True)
    return pairs[:, 1:], which.reshape(-1)


def _step(places: Array) -> float:
    """How far numbers that stand next to each other are apart in the picture."""
    ordered = np.sort(places, axis=1)  # nan goes last
    steps = (np.diff(ordered, axis=1) > 1e-9).sum(axis=1)
    low, high = _ends(places)
    return float(np.median((high - low) / np.maximum(steps, 1)))
