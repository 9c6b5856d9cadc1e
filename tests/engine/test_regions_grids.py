"""How tokens are laid out, told from numbers alone: by hand for small grids, and what no grid explains is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from steer import regions
from steer.errors import MappingError
from steer.regions.grids import Lattice, grid_of, grouped
from steer.regions.mosaics import mosaic_of

from .regions_processors import noise, word_tokenizer


def lines(rows: int, columns: int) -> Lattice:
    """Patches line by line."""
    high, wide = np.divmod(np.arange(rows * columns), columns)
    return Lattice(high, wide)


def test_squares_of_patches_that_come_line_by_line_are_put_together() -> None:
    found = grouped(lines(4, 6), 6, [6]).reshape(6, 4)
    blocks = [[12 * row + 2 * column + step for step in (0, 1, 6, 7)] for row in range(2) for column in range(3)]
    assert found.tolist() == blocks


@pytest.mark.parametrize(
    ("lattice", "tokens"),
    [(lines(4, 6), 5), (lines(4, 6), 0), (lines(2, 9), 2)],
    ids=["no whole number each", "no tokens", "nine each in two lines"],
)
def test_patches_that_are_no_squares_are_refused(lattice: Lattice, tokens: int) -> None:
    patches, (high, wide) = len(lattice.rows), (lattice.rows[-1] + 1, lattice.columns[-1] + 1)
    with pytest.raises(MappingError, match=f"{patches} patches in {high} rows and {wide} columns and {tokens} image"):
        grouped(lattice, tokens, [tokens])


def test_patches_in_another_order_are_refused() -> None:
    down = Lattice(lines(4, 4).columns, lines(4, 4).rows)
    with pytest.raises(MappingError, match="16 patches in 4 rows and 4 columns"):
        grouped(down, 4, [4])
    assert grouped(down, 16, [16]).tolist() == list(range(16))


def test_runs_of_tokens_say_where_a_line_or_a_tile_ends() -> None:
    assert grid_of(8, 1, (16, 32), [4, 4]) == (2, 4)
    assert grid_of(8, 2, (16, 16), [4, 4]) == (2, 2)
    for tiles, sides, runs in ((1, (16, 32), [2, 2, 2, 2]), (2, (16, 16), [3, 5]), (3, (16, 16), [8])):
        with pytest.raises(MappingError, match="8 image tokens"):
            grid_of(8, tiles, sides, runs)


def test_tiles_that_do_not_come_line_by_line_make_no_mosaic() -> None:
    """The whole as a tile, then its four quarters, a token for each 2 x 2 pixels and one at the end of each line."""
    places = np.arange(8) + 0.5
    whole = [np.broadcast_to(one, (4, 4)) for one in (places[::2] + 0.5, (places[::2] + 0.5)[:, None])]
    x, y = (np.broadcast_to(one, (8, 8)) for one in (places, places[:, None]))
    order = {"lines": [(0, 0), (0, 4), (4, 0), (4, 4)], "columns": [(0, 0), (4, 0), (0, 4), (4, 4)]}
    found = {}
    for name, corners in order.items():
        tiles = [
            np.stack([first, *(one[r : r + 4, c : c + 4] for r, c in corners)])
            for first, one in zip(whole, (x, y), strict=True)
        ]
        found[name] = mosaic_of(*tiles, 4 + 4 * 5)
    assert found["lines"] is not None
    assert [len(cells[0]) for cells in found["lines"]] == [4, 20]
    assert found["columns"] is None


class Odd:
    """A processor that makes of a picture what a test says."""

    image_processor = "some"

    def __init__(self, pictured: Any, **more: Any) -> None:
        self.tokenizer, self.pictured = word_tokenizer(), pictured
        vars(self).update(more)

    def __call__(self, text: Any, images: Any, **options: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.full((1, 4), 3), **self.pictured(torch.tensor(np.asarray(images[0])).float())}


def small(picture: torch.Tensor) -> dict[str, torch.Tensor]:
    raise ValueError("give a larger picture")


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (Odd(small, image_token_id=3), "Odd was shown a picture of 8 x 6 pixels.*give a larger picture"),
        (Odd(lambda picture: {"pixels": picture * 0}, image_token_id=3), r"'pixels'\], changed.*: \[\]"),
        (Odd(lambda picture: {"a": picture, "b": picture}, image_token_id=3), r"changed.*\['a', 'b'\]"),
        (Odd(small), r"Odd does not say which token stands for a picture \(image_token_id\)"),
    ],
    ids=["refuses", "no pixels", "two of them", "no token"],
)
def test_a_processor_that_cannot_be_asked_is_named(processor: Any, said: str) -> None:
    inputs = {"input_ids": torch.full((1, 4), 3)}
    with pytest.raises(MappingError, match=said):
        regions.footprints(processor, inputs, noise(8, 6))
