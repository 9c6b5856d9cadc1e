"""How the tokens of a picture are laid out over its tiles or patches, told from how many there are of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MappingError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Lattice:
    """The row and the column of each patch, int (R,)."""

    rows: Array
    columns: Array


def grid_of(tokens: int, tiles: int, sides: Sequence[int], runs: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the tokens of one tile, which are squares of pixels.

    Args:
        tokens: of the whole picture.
        tiles: how many it has, the one of the whole picture included.
        sides: height and width of a tile.
        runs: lengths of the runs of image tokens; the words between them end a tile, or a row of one.

    Raises:
        MappingError: no grid explains the numbers.
    """
    height, width = sides
    each = tokens // tiles if tiles and tokens % tiles == 0 else 0
    found = [(rows, each // rows) for rows in range(1, each + 1) if each % rows == 0]
    squares = [one for one in found if _square(height, one[0]) == _square(width, one[1]) is not None]
    ends = set(accumulate(runs))
    if len(runs) > 1 and tiles == 1:
        squares = [one for one in squares if set(runs) == {one[1]}]
    elif len(runs) > 1 and not ends >= {each * tile for tile in range(1, tiles + 1)}:
        squares = []
    if len(squares) != 1:
        raise unexplained(f"{tiles} tile(s) of {width} x {height} pixels", tokens, runs)
    return squares[0]


def _square(pixels: int, count: int) -> int | None:
    """The side of squares that lie `count` times along some pixels, with less than one left over."""
    side = pixels // count
    return side if side and pixels - side * count < side else None


def grouped(lattice: Lattice, tokens: int, runs: Sequence[int]) -> Array:
    """The order of patches in which each token has its own one after the other, int (R,).

    Raises:
        MappingError: the patches cannot be put together into as many compact blocks.
    """
    patches = len(lattice.rows)
    each = patches // tokens if tokens and patches % tokens == 0 else 0
    order = np.arange(patches)
    if each == 1 or (each and _compact(lattice, order, each)):
        return order
    rows, columns = int(lattice.rows.max(initial=-1)) + 1, int(lattice.columns.max(initial=-1)) + 1
    side = math.isqrt(each)
    # Patches line by line, and the model puts squares of them together.
    line_by_line = np.array_equal(lattice.rows * columns + lattice.columns, order) and rows * columns == patches
    if each and side * side == each and line_by_line and rows % side == 0 and columns % side == 0:
        blocks = order.reshape(rows // side, side, columns // side, side)
        return blocks.transpose(0, 2, 1, 3).reshape(-1)
    raise unexplained(f"{patches} patches in {rows} rows and {columns} columns", tokens, runs)


def _compact(lattice: Lattice, order: Array, each: int) -> bool:
    """Whether each run of patches is a square, or, where no square has as many, any rectangle."""
    rows, columns = lattice.rows[order].reshape(-1, each), lattice.columns[order].reshape(-1, each)
    high, wide = (np.ptp(one, axis=1) + 1 for one in (rows, columns))
    places = rows * (lattice.columns.max() + 1) + columns
    whole = all(len(set(one)) == each for one in places.tolist())
    side = math.isqrt(each)
    shaped = (high == side) & (wide == side) if side * side == each else high * wide == each
    return whole and bool(shaped.all())


def unexplained(seen: str, tokens: int, runs: Sequence[int]) -> MappingError:
    """The error for numbers that no layout explains."""
    several = f" in runs of {list(runs)[:12]}" if len(runs) > 1 else ""
    return MappingError(
        f"which part of the picture each image token looks at cannot be told: the processor made {seen} and "
        f"{tokens} image tokens{several}, and no even grid of squares explains that; choose the tokens yourself with "
        "positions.mask"
    )
