"""Pictures that come as one tile of the whole and more tiles of its parts, joined into one large grid of tokens.

The large grid is read line by line across the tiles, each line ends in a token of its own, and lines or columns that
are padding are cut off on both sides alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .edges import lattice_of

Array = npt.NDArray[Any]
Cells = tuple[Array, Array]


def mosaic_of(x: Array, y: Array, tokens: int) -> list[Cells] | None:
    """The cells of the whole picture and those of its parts; None where that does not explain the number of tokens.

    Args:
        x: places along the width, (tiles, height, width), the tile of the whole first; nan at padding.
        y: places along the height.
        tokens: of the whole picture.
    """
    parts, side = len(x) - 1, x.shape[-1]
    if parts < 1 or x.shape[-2] != side or np.isnan(x).all(axis=(1, 2)).any():
        return None
    lattice = lattice_of(x[1:].reshape(parts, -1), y[1:].reshape(parts, -1))
    columns = int(lattice.columns.max()) + 1
    if not np.array_equal(lattice.rows * columns + lattice.columns, np.arange(parts)):
        return None
    found = []
    for grid in (n for n in range(1, side + 1) if side % n == 0):
        big = [_joined(one[1:], columns, grid) for one in (x, y)]
        for keep in _kept(np.asarray(np.isnan(big[0]).any(axis=-1)), tokens - grid * grid):
            found.append([_cells(x[:1], y[:1], grid), (_ended(big[0][keep]), _ended(big[1][keep]))])
    return found[0] if len(found) == 1 else None


def _kept(padded: Array, tokens: int) -> list[tuple[slice, slice]]:
    """Every way to cut lines or columns off a grid so that it has so many tokens, with one more in each line.

    What is cut has padding in all of its cells, and is as wide on one side as on the other.
    """
    rows, columns = padded.shape
    ways = [(cut, 0) for cut in range((rows + 1) // 2)] + [(0, cut) for cut in range(1, (columns + 1) // 2)]
    return [
        (slice(high, rows - high), slice(wide, columns - wide))
        for high, wide in ways
        if (rows - 2 * high) * (columns - 2 * wide + 1) == tokens
        and padded[[*range(high), *range(rows - high, rows)]].all()
        and padded[:, [*range(wide), *range(columns - wide, columns)]].all()
    ]


def _joined(tiles: Array, columns: int, grid: int) -> Array:
    """The large grid of cells, (rows, columns, numbers)."""
    rows, side = len(tiles) // columns, tiles.shape[-1] // grid
    cells = tiles.reshape(rows, columns, grid, side, grid, side).transpose(0, 2, 1, 4, 3, 5)
    return cells.reshape(rows * grid, columns * grid, side * side)


def _cells(x: Array, y: Array, grid: int) -> Cells:
    first, second = (_joined(one, 1, grid) for one in (x, y))
    return first.reshape(-1, first.shape[-1]), second.reshape(-1, second.shape[-1])


def _ended(cells: Array) -> Array:
    """The cells line by line, with one that sees nothing after each line."""
    ends = np.full((len(cells), 1, cells.shape[-1]), np.nan)
    return np.concatenate([cells, ends], axis=1).reshape(-1, cells.shape[-1])
