"""Labelled pictures of every set, by split: emoji as the zoo draws them, and scikit-learn's digits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from protocol import OTHER_STYLE, SETS, TEST, VAL, drawn

from steer import zoo

SIDE = 48
DIGITS = tuple(
    f"digit {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
)
Pairs = list[tuple[Any, str]]


@cache
def classes(name: str, count: int, tuning: bool = False) -> tuple[str, ...]:
    """The classes of a set that are compared, sorted; `tuning` gives others of the same set."""
    if name not in SETS:
        raise ValueError(f"no set {name!r}; there are {', '.join(SETS)}")
    if name == "digits":
        return tuple(drawn(name, list(DIGITS), count))
    both = set(zoo.classes(name, "fluent")) & set(zoo.classes(name, OTHER_STYLE))
    return tuple(drawn(name, sorted(both), count, tuning))


@cache
def pictures(name: str, split: str, seed: int, style: str = "fluent") -> Pairs:
    """(picture, class) pairs, class by class: 16 in "train" and "val", 20 in "test", which no seed changes."""
    many = TEST if split == "test" else VAL
    if name == "digits":
        return _digits(split, many, seed)
    return zoo.labelled(name, split, per_class=many, style=style, seed=seed)


def of(pairs: Pairs, names: Sequence[str], per_class: int | None = None) -> Pairs:
    """The pairs of some classes, and only the first few of each."""
    left = dict.fromkeys(names, len(pairs) if per_class is None else per_class)
    made = []
    for picture, label in pairs:
        if left.get(label, 0) > 0:
            left[label] -= 1
            made.append((picture, label))
    return made


@cache
def _images() -> dict[str, list[np.ndarray]]:
    """The 8 x 8 images, 0 to 16, by class in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    found = {name: [data.images[i] for i in np.flatnonzero(data.target == n)] for n, name in enumerate(DIGITS)}
    for name, images in found.items():
        random.Random(f"digits {name}").shuffle(images)
    return found


def _digits(split: str, many: int, seed: int) -> Pairs:
    """Real handwriting. The first pictures of a class are the test's; train and val take of the others."""
    made: Pairs = []
    for name in sorted(DIGITS):
        chosen = _images()[name][:many]
        if split != "test":
            rest = _images()[name][TEST:]
            random.Random(f"{name} {seed}").shuffle(rest)
            chosen = rest[:many] if split == "train" else rest[-many:]
        made += [(shown(image), name) for image in chosen]
    return made


def shown(image: np.ndarray) -> Image.Image:
    """A digit as tiny-clip takes pictures: dark grey strokes on white, enlarged, with a margin."""
    grey = Image.fromarray((255 - image / 16 * 215).astype(np.uint8))
    paper = Image.new("L", (SIDE, SIDE), 255)
    paper.paste(grey.resize((40, 40), Image.Resampling.BICUBIC), (4, 4))
    return paper.convert("RGB")
