"""Labelled pictures for tiny-clip: which sets, classes and styles there are, and seeded draws of each."""

from __future__ import annotations

import difflib
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image

_EMOJI = Path(__file__).parent / "emoji"
SPLITS = ("train", "val", "test")


def _choose(what: str, asked: str, there: Iterable[str]) -> None:
    """Raise unless `asked` is there, and name the nearest."""
    names = list(there)
    if asked not in names:
        near = difflib.get_close_matches(str(asked), names, 1, 0.0)[0]
        raise ValueError(f"no {what} {asked!r}; there are {', '.join(names)} (nearest: {near!r})")


@lru_cache
def _index() -> dict[str, Any]:
    """labels.json: `side` and `across` of the sheets, and for each style its `sheet` and {set: {class: place}}."""
    found: dict[str, Any] = json.loads((_EMOJI / "labels.json").read_text())
    return found


@lru_cache
def _sheet(style: str) -> Image:
    """The glyphs of a style, RGBA."""
    from PIL import Image

    return Image.open(_EMOJI / _index()["styles"][style]["sheet"]).convert("RGBA")


def _places(name: str, style: str) -> dict[str, int]:
    """{class: place in the sheet} of one set in one style, sorted by class."""
    styles = _index()["styles"]
    _choose("style", style, styles)
    sets: dict[str, dict[str, int]] = styles[style]["sets"]
    _choose("picture set", name, sets)
    return dict(sorted(sets[name].items()))


def picture_sets() -> list[str]:
    """The labelled picture sets for tiny-clip: kinds of emoji, in two styles that its training never saw."""
    return list(_index()["styles"]["fluent"]["sets"])


def classes(name: str, style: str = "fluent") -> list[str]:
    """The class names of a picture set, sorted. Style "noto-v1" lacks the newer emoji, so it has fewer.

    Raises ValueError for a set or a style that is not there.
    """
    return list(_places(name, style))


def labelled(
    name: str, split: str = "train", per_class: int = 16, style: str = "fluent", seed: int = 0
) -> list[tuple[Image, str]]:
    """Pictures of a set with their class names: 48 x 48 RGB, class by class, `per_class` of each.

    Every picture is its class's one glyph of the style ("fluent" or "noto-v1", neither in training) under a random
    corruption: shots differ in background, place, size, turn, tint, blur and noise, and are not independent objects.
    Split, set, style, class and number alone decide a "test" picture; `seed` changes "train" and "val" too. The
    streams of the splits are disjoint, and fewer shots are the first of more. Raises ValueError for what is not there.
    """
    import numpy as np

    from steer.zoo._clip_render import render

    _choose("split", split, SPLITS)
    if per_class < 1 or seed < 0:
        raise ValueError(f"per_class must be at least 1 and seed at least 0; got {per_class} and {seed}")
    side, across = _index()["side"], _index()["across"]
    found = []
    for label, place in _places(name, style).items():
        x, y = place % across * side, place // across * side
        glyph = _sheet(style).crop((x, y, x + side, y + side))
        stream = zlib.crc32(f"{split}/{style}/{name}/{label}".encode())
        for i in range(per_class):
            rng = np.random.default_rng([stream, SPLITS.index(split), 0 if split == "test" else seed, i])
            found.append((render(glyph, rng), label))
    return found
