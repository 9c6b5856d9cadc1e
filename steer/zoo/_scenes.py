"""Scenes for tiny-scenes: one to three things on a plain background, with a printed word or without.

A scene is composed when it is asked for, from the drawings in steer/zoo/emoji; no scene is stored. Split, law, seed
and number decide what it shows; its word has a stream of its own, so the same scene comes with and without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from steer.zoo import _scene_font
from steer.zoo._clip_pictures import _choose, _index, _places, _sheet
from steer.zoo._scene_words import (
    CELLS,
    COLOURS,
    COUNT_LAW,
    FREE_PARTNER,
    FREQUENCY,
    OBJECTS,
    PARTNER_JOINS,
    PARTNERS,
    STYLES,
    WORD_RATE,
    WORD_RIGHT,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SPLITS = ("demo", "dev", "test")
WORDS = ("none", "right", "wrong", "law")
SIDE = 64  # pixels, what training saw
STRIP = 9  # pixels, the height of the strip for the word: kept free in every scene
CELL = (SIDE // 2, (SIDE - STRIP) // 2)  # pixels, wide and high
SIZES = (14, 19, 25)  # pixels, the longer side of a thing
FAINT = 0.15  # things are opaque to a share between this and 1
NOISE = 12.0  # of 255, the standard deviation of the grain
TINT = 12.0  # of 255, how far a background may be from its colour
_TRAIN = 3  # the number of the split that only training draws from

Box = tuple[int, int, int, int]


class Thing(NamedTuple):
    """One object of a scene: its word, the word for its cell, its box in pixels (left, top, right, bottom)."""

    name: str
    cell: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """One picture and all that it shows.

    `image` is RGB; `things` are in the reading order of their cells; `colour` is the background's word; `word` is
    printed on a white strip whose box is `word_box`, or both are None.
    """

    image: Image
    things: tuple[Thing, ...]
    colour: str
    word: str | None
    word_box: Box | None

    @property
    def names(self) -> tuple[str, ...]:
        """The words for what is there, in reading order: the true caption."""
        return tuple(thing.name for thing in self.things)


def scenes(
    split: str = "test",
    n: int = 100,
    seed: int = 0,
    *,
    biased: bool = False,
    word: str = "none",
    side: int = SIDE,
) -> list[Scene]:
    """The first n scenes of a stream: RGB pictures of side x side pixels with what they show.

    The streams of "demo", "dev" and "test" are disjoint from each other and from training. Objects, their number,
    backgrounds and words are uniform; with `biased` objects and their number follow the law of training. `word` is
    "none", or a word is printed that names a thing that is there ("right"), or one that is not ("wrong"), or as often
    and as rightly as in training ("law"). The same scene comes for any `word` and `side`; only the strip and the size
    change. Raises ValueError for what is not there.
    """
    _choose("split", split, SPLITS)
    _choose("kind of word", word, WORDS)
    if n < 0 or seed < 0 or side < SIDE // 2:
        raise ValueError(f"n and seed must be at least 0 and side at least {SIDE // 2}; got {n}, {seed} and {side}")
    return [compose(SPLITS.index(split), seed, i, biased, word, side) for i in range(n)]


def compose(stream: int, seed: int, number: int, biased: bool, word: str, side: int = SIDE) -> Scene:
    """One scene; see `scenes`. `stream` is the place of the split, or _TRAIN."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng([stream, biased, seed, number])
    names = _draw_names(rng, biased)
    cells = sorted(rng.permutation(len(CELLS))[: len(names)].tolist())
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    at_top = bool(rng.random() < 0.5)
    scale = side / SIDE

    ground = np.array(COLOURS[colour]) + rng.uniform(-TINT, TINT, 3)
    canvas = np.broadcast_to(ground.astype(np.float32), (side, side, 3)).copy()
    things = []
    for name, cell in zip(names, cells, strict=True):
        style, size = STYLES[rng.integers(len(STYLES))], SIZES[rng.integers(len(SIZES))]
        opacity, jitter = rng.uniform(FAINT, 1), rng.random(2)
        wide, high = _glyph(name, style, size).shape[1::-1]  # the place must not depend on the side of the picture
        corner = (cell % 2 * CELL[0], cell // 2 * CELL[1] + STRIP * at_top)
        left, top = (
            round(scale * (c + int(j * (room - s + 1))))
            for c, j, room, s in zip(corner, jitter, CELL, (wide, high), strict=True)
        )
        glyph = _glyph(name, style, round(size * scale))[: side - top, : side - left]
        high, wide = glyph.shape[:2]
        window = canvas[top : top + high, left : left + wide]
        window += opacity * (glyph[..., :3] - glyph[..., 3:] * window)
        things.append(Thing(name, CELLS[cell], (left, top, left + wide, top + high)))

    word_rng = np.random.default_rng([stream, biased, seed, number, 1])  # its own: a word must not move the grain
    printed = _draw_word(word_rng, names, word)
    box = None
    if printed:
        start = int(word_rng.random() * (SIDE - 2 - _scene_font.width(printed))) + 1
        high = round(STRIP * scale)
        box = (0, 0, side, high) if at_top else (0, side - high, side, side)
        canvas[box[1] : box[3]] = _strip(printed, start, side, high)
    grain = rng.standard_normal((SIDE, SIDE), np.float32) * np.float32(NOISE)
    if side != SIDE:
        grain = np.asarray(Image.fromarray(grain).resize((side, side), Image.Resampling.BILINEAR))
    pixels = (canvas + grain[..., None]).clip(0, 255).astype(np.uint8)
    return Scene(Image.fromarray(pixels), tuple(things), colour, printed, box)


def _draw_names(rng: np.random.Generator, biased: bool) -> list[str]:
    """What a scene shows: one to three different objects, in random order."""
    names = list(OBJECTS)
    if not biased:
        return [names[i] for i in rng.permutation(len(names))[: 1 + rng.integers(3)]]
    count = 1 + int(rng.choice(3, p=COUNT_LAW))
    found: list[str] = []
    while len(found) < count:
        partner = PARTNERS.get(found[-1]) if found else None
        if partner and partner not in found and rng.random() < PARTNER_JOINS:
            found.append(partner)
            continue
        last = len(found) == count - 1
        weights = [
            0.0 if name in found else weight * (FREE_PARTNER if last and name in PARTNERS else 1.0)
            for name, weight in FREQUENCY.items()
        ]
        total = sum(weights)
        found.append(names[rng.choice(len(names), p=[w / total for w in weights])])
    return [found[i] for i in rng.permutation(count)]


def _draw_word(rng: np.random.Generator, names: list[str], word: str) -> str | None:
    """The word to print, of the kind asked for."""
    right = bool(rng.random() < WORD_RIGHT) if word == "law" else word == "right"
    if word == "none" or (word == "law" and rng.random() >= WORD_RATE):
        return None
    choices = names if right else [name for name in OBJECTS if name not in names]
    return choices[rng.integers(len(choices))]


@lru_cache(maxsize=4096)
def _glyph(name: str, style: str, size: int) -> np.ndarray:
    """A drawing without its empty border, its longer side `size`: [high, wide, 4] float32, colours times alpha."""
    import numpy as np
    from PIL import Image

    place, side, across = _places(OBJECTS[name][0], style)[OBJECTS[name][1]], _index()["side"], _index()["across"]
    x, y = place % across * side, place // across * side
    glyph = _sheet(style).crop((x, y, x + side, y + side))
    glyph = glyph.crop(glyph.getbbox())
    share = size / max(glyph.size)
    resized = glyph.resize([max(1, round(s * share)) for s in glyph.size], Image.Resampling.LANCZOS)
    pixels = np.asarray(resized).astype(np.float32)
    alpha = pixels[..., 3:] / 255
    return np.concatenate([pixels[..., :3] * alpha, alpha], -1)


def _strip(word: str, start: int, side: int, high: int) -> np.ndarray:
    """The white strip with a word in black that begins at dot `start`: [high, side, 1] float32 in 0..255."""
    import numpy as np
    from PIL import Image

    ink = np.full((STRIP, SIDE), 255, np.uint8)
    ink[2 : 2 + _scene_font.HIGH, start : start + _scene_font.width(word)][_scene_font.dots(word)] = 0
    return np.asarray(Image.fromarray(ink).resize((side, high), Image.Resampling.BOX)).astype(np.float32)[..., None]
