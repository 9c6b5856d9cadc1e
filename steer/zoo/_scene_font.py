"""Letters of 5 x 5 dots, and a word printed with them: small enough for ten letters in 64 pixels."""

from __future__ import annotations

from string import ascii_lowercase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# five rows for each letter, from a to z
_DRAWN = """
.###. #...# ##### #...# #...#
####. #...# ####. #...# ####.
.#### #.... #.... #.... .####
####. #...# #...# #...# ####.
##### #.... ###.. #.... #####
##### #.... ###.. #.... #....
.#### #.... #..## #...# .####
#...# #...# ##### #...# #...#
##### ..#.. ..#.. ..#.. #####
....# ....# ....# #...# .###.
#...# #..#. ###.. #..#. #...#
#.... #.... #.... #.... #####
#...# ##.## #.#.# #...# #...#
#...# ##..# #.#.# #..## #...#
.###. #...# #...# #...# .###.
####. #...# ####. #.... #....
.###. #...# #.#.# #..#. .##.#
####. #...# ####. #..#. #...#
.#### #.... .###. ....# ####.
##### ..#.. ..#.. ..#.. ..#..
#...# #...# #...# #...# .###.
#...# #...# #...# .#.#. ..#..
#...# #...# #.#.# ##.## #...#
#...# .#.#. ..#.. .#.#. #...#
#...# .#.#. ..#.. ..#.. ..#..
##### ...#. ..#.. .#... #####
"""
LETTERS = {letter: line.split() for letter, line in zip(ascii_lowercase, _DRAWN.strip().splitlines(), strict=True)}
HIGH, WIDE = 5, 6  # dots of a letter, with the gap after it


def width(word: str) -> int:
    """Dots that a word takes in a row."""
    return WIDE * len(word) - 1


def dots(word: str) -> np.ndarray:
    """A word of the letters a to z as a mask [5, width(word)], true where there is ink."""
    import numpy as np

    rows = [".".join(LETTERS[letter][row] for letter in word) for row in range(HIGH)]
    return np.array([[dot == "#" for dot in row] for row in rows])
