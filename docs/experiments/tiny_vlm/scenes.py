"""Compose pictures: sample labels, then paste sprites on a coloured background, many pictures at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from steer.zoo._words import ATTRIBUTES, BIAS, BIAS_RATE, HELD_OUT_COLOUR, HELD_OUT_COUNT, OBJECTS, VALUES

CANVAS = 48  # pixels
BOX = 20  # pixels, the side of a padded sprite
RGB = np.array(
    [
        (214, 48, 44), (240, 140, 40), (246, 220, 70), (60, 165, 75),
        (60, 110, 220), (140, 70, 180), (242, 242, 242), (28, 28, 32),
    ],
    np.float32,
)  # fmt: skip
COLUMN = {name: i for i, name in enumerate(ATTRIBUTES)}
KIND = np.array([VALUES["kind"].index(kind) for kind, _ in OBJECTS.values()])
_name = {w: i for i, w in enumerate(OBJECTS)}
_colour = {w: i for i, w in enumerate(VALUES["colour"])}
_count = {w: i for i, w in enumerate(VALUES["count"])}
BIASED = np.full(len(OBJECTS), -1)
NO_COLOUR = np.full(len(OBJECTS), -1)
NO_COUNT = np.full(len(OBJECTS), -1)
for word, colour in BIAS.items():
    BIASED[_name[word]] = _colour[colour]
for word, colour in HELD_OUT_COLOUR.items():
    NO_COLOUR[_name[word]] = _colour[colour]
for word, count in HELD_OUT_COUNT.items():
    NO_COUNT[_name[word]] = _count[count]


def load_bank(path: Path) -> np.ndarray:
    """Sprite bank [object, style, size, variant, BOX, BOX, 4] as float32, colours premultiplied by alpha in 0..1."""
    bank = np.load(path)["bank"].astype(np.float32)
    bank[..., 3:] /= 255.0
    bank[..., :3] *= bank[..., 3:]
    return bank


def sample_labels(n: int, rng: np.random.Generator, train: bool) -> np.ndarray:
    """Labels [n, 7] int64, one column per attribute. Training is biased and misses the held-out pairs; else uniform."""
    y = np.stack([rng.integers(len(values), size=n) for values in VALUES.values()], 1)
    if train:
        name = y[:, COLUMN["object"]]
        forced = (BIASED[name] >= 0) & (rng.random(n) < BIAS_RATE)
        y[:, COLUMN["colour"]] = np.where(forced, BIASED[name], y[:, COLUMN["colour"]])
        for column, banned in ((COLUMN["colour"], NO_COLOUR), (COLUMN["count"], NO_COUNT)):
            hit = y[:, column] == banned[name]
            # a step of 1 to size-1 leaves the banned value and stays uniform over the others
            size = len(VALUES[ATTRIBUTES[column]])
            y[:, column] = np.where(hit, (y[:, column] + rng.integers(1, size, size=n)) % size, y[:, column])
    y[:, COLUMN["kind"]] = KIND[y[:, COLUMN["object"]]]
    return y


def layout(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centres [n, 4, 2] (x, y in pixels) of up to four sprites: a row along the middle of the half that is named."""
    n = len(y)
    count = y[:, COLUMN["count"]] + 1
    big = y[:, COLUMN["size"]] == 1
    radius = np.where(big, 9.0, 6.0)
    room = CANVAS - 2 * radius
    widest = room / np.maximum(count - 1, 1)
    spacing = np.minimum(widest, rng.uniform(0.9, 1.4, n) * 2 * radius)
    slack = np.minimum((room - spacing * (count - 1)) / 2, 4)
    middle = CANVAS / 2 + rng.uniform(-1, 1, n) * slack
    slot = np.arange(4)
    along = middle[:, None] + (slot - (count[:, None] - 1) / 2) * spacing[:, None]
    # big sprites that stand closer than their width go zigzag
    zigzag = np.where(spacing < 1.8 * radius, np.sqrt(np.maximum((1.8 * radius) ** 2 - spacing**2, 0)), 0) * 0.7
    across = radius + rng.uniform(0, 1, n) * np.maximum(24 - 2 * radius - zigzag, 1)
    across = across[:, None] + (slot % 2 == rng.integers(2, size=n)[:, None]) * zigzag[:, None]
    side = y[:, COLUMN["position"]][:, None]  # left, right, top, bottom
    across = np.where(side % 2 == 1, CANVAS - across, across)
    x = np.where(side < 2, across, along)
    return np.stack([x, np.where(side < 2, along, across)], -1)


def compose(y: np.ndarray, bank: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures [n, CANVAS, CANVAS, 3] uint8 for labels [n, 7]."""
    n = len(y)
    pad = BOX // 2
    ground = np.clip(RGB[y[:, COLUMN["colour"]]] + rng.uniform(-14, 14, (n, 3)), 0, 255).astype(np.float32)
    canvas = np.broadcast_to(ground[:, None, None], (n, CANVAS + 2 * pad, CANVAS + 2 * pad, 3)).copy()
    centre = np.rint(layout(y, rng)).astype(int)
    variant = rng.integers(3, size=n)
    sprite = bank[y[:, COLUMN["object"]], y[:, COLUMN["style"]], y[:, COLUMN["size"]], variant]
    grid = np.arange(BOX)
    for slot in range(4):
        rows = np.flatnonzero(y[:, COLUMN["count"]] >= slot)
        # the padding of the canvas and half of the box cancel, so a window starts at the centre itself
        xs = centre[rows, slot, 0][:, None, None] + grid[None, None, :]
        ys = centre[rows, slot, 1][:, None, None] + grid[None, :, None]
        window = canvas[rows[:, None, None], ys, xs]
        canvas[rows[:, None, None], ys, xs] = window * (1 - sprite[rows, ..., 3:]) + sprite[rows, ..., :3]
    return np.rint(canvas[:, pad:-pad, pad:-pad]).astype(np.uint8)
