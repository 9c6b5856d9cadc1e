"""Pictures changed at random, with nothing but PIL, from a random generator that the caller holds.

Each function takes an RGB picture (others are made RGB) and gives a new one. `rng` is a `random.Random` or a
`numpy.random.Generator`: only its `random()`, a number in [0, 1), is used, so a seed always gives the same pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import SteerError

# Steps of the scale on which `rand_augment` has its magnitude, 0 to 30.
LAST_MAGNITUDE = 30
# Crops that are tried before the largest one in the middle is taken.
_TRIES = 10


class Random(Protocol):
    """What is asked of a random generator."""

    def random(self) -> float:
        """A number in [0, 1)."""


def random_resized_crop(
    image: Any,
    rng: Random,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    size: int | None = None,
) -> Any:
    """Cut out a part of random area and shape, and make it a square: torchvision's RandomResizedCrop, bicubic.

    Args:
        image: a PIL image.
        rng: where the randomness comes from.
        scale: the least and the largest share of the picture's area.
        ratio: the least and the largest width over height; drawn evenly on a logarithmic scale.
        size: the side of the square in pixels; None takes the picture's shorter side. With the size that a processor
            resizes to, pixels are interpolated once.

    Returns:
        A PIL image, RGB, size x size.

    Raises:
        SteerError: a range that is empty or not positive, or no PIL image.
    """
    picture = _rgb(image)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise SteerError(f"{name} is {(low, high)}; it must be a positive range, the lower end first")
    if scale[1] > 1:
        raise SteerError(f"scale is {scale}; a part of a picture is at most 1 of it")
    side = min(picture.size) if size is None else size
    if side < 1:
        raise SteerError(f"size is {size}; it must be 1 or more")
    return picture.crop(_box(picture.width, picture.height, rng, scale, ratio)).resize(
        (side, side), _resampling().BICUBIC
    )


def flip(image: Any, rng: Random, p: float = 0.5) -> Any:
    """Swap left and right with probability `p`.

    Args:
        image: a PIL image.
        rng: where the randomness comes from.
        p: 0 never, 1 always.

    Returns:
        A PIL image, RGB, of the same size.

    Raises:
        SteerError: p is no probability, or no PIL image.
    """
    from PIL import ImageOps

    if not 0 <= p <= 1:
        raise SteerError(f"p is {p}; a probability is between 0 and 1")
    picture = _rgb(image)
    return ImageOps.mirror(picture) if rng.random() < p else picture


def rand_augment(image: Any, rng: Random, n: int = 2, magnitude: int = 10) -> Any:
    """Apply n operations drawn with replacement, all at one magnitude: RandAugment (https://arxiv.org/abs/1909.13719).

    Operations and strengths are torchvision's with 31 magnitudes, nearest neighbour and black corners. At magnitude m,
    with t = m / 30: shear by 0.3 t, translation by 150/331 t of a side, rotation by 30 t degrees and brightness,
    colour, contrast and sharpness times 1 + 0.9 t, each of these with either sign; posterise to 8 - 4 t bits; solarise
    from 255 (1 - t) on; autocontrast, equalise and identity have no strength.

    Args:
        image: a PIL image.
        rng: where the randomness comes from.
        n: how many operations, 0 or more.
        magnitude: 0 to 30.

    Returns:
        A PIL image, RGB, of the same size.

    Raises:
        SteerError: n or magnitude out of range, or no PIL image.
    """
    if n < 0 or not 0 <= magnitude <= LAST_MAGNITUDE:
        raise SteerError(f"n is {n} and magnitude {magnitude}; n is 0 or more, and magnitude 0 to {LAST_MAGNITUDE}")
    picture = _rgb(image)
    names = list(OPERATIONS)
    for _ in range(n):
        name = names[_below(len(names), rng)]
        sign = -1 if name in SIGNED and _below(2, rng) else 1
        picture = OPERATIONS[name](picture, sign * magnitude / LAST_MAGNITUDE)
    return picture


def _box(
    width: int, height: int, rng: Random, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    for _ in range(_TRIES):
        area = width * height * _between(*scale, rng)
        shape = math.exp(_between(math.log(ratio[0]), math.log(ratio[1]), rng))
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            left, top = _below(width - across + 1, rng), _below(height - down + 1, rng)
            return left, top, left + across, top + down
    # As much of the middle as has a shape within the range.
    across = min(width, max(1, round(height * ratio[1])))
    down = min(height, max(1, round(width / ratio[0])))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def _between(low: float, high: float, rng: Random) -> float:
    return low + (high - low) * rng.random()


def _below(count: int, rng: Random) -> int:
    return int(rng.random() * count)


def _affine(picture: Any, row: tuple[float, float, float], column: tuple[float, float, float]) -> Any:
    """The picture whose pixel (x, y) is the old one's at (row · (x, y, 1), column · (x, y, 1))."""
    from PIL import Image

    return picture.transform(picture.size, Image.Transform.AFFINE, (*row, *column), _resampling().NEAREST)


def _enhanced(kind: str, picture: Any, t: float) -> Any:
    from PIL import ImageEnhance

    return getattr(ImageEnhance, kind)(picture).enhance(1 + 0.9 * t)


def _ops(name: str, picture: Any, *args: Any) -> Any:
    from PIL import ImageOps

    return getattr(ImageOps, name)(picture, *args)


# Each takes a picture and the strength t, a share of the scale. Pixels are moved by whole numbers, cut towards 0.
OPERATIONS: dict[str, Callable[[Any, float], Any]] = {
    "identity": lambda picture, t: picture,
    "shear_x": lambda picture, t: _affine(picture, (1, 0.3 * t, 0), (0, 1, 0)),
    "shear_y": lambda picture, t: _affine(picture, (1, 0, 0), (0.3 * t, 1, 0)),
    "translate_x": lambda picture, t: _affine(picture, (1, 0, -int(150 / 331 * picture.width * t)), (0, 1, 0)),
    "translate_y": lambda picture, t: _affine(picture, (1, 0, 0), (0, 1, -int(150 / 331 * picture.height * t))),
    "rotate": lambda picture, t: picture.rotate(30 * t, _resampling().NEAREST),
    "brightness": lambda picture, t: _enhanced("Brightness", picture, t),
    "colour": lambda picture, t: _enhanced("Color", picture, t),
    "contrast": lambda picture, t: _enhanced("Contrast", picture, t),
    "sharpness": lambda picture, t: _enhanced("Sharpness", picture, t),
    "posterise": lambda picture, t: _ops("posterize", picture, 8 - round(4 * t)),
    "solarise": lambda picture, t: _ops("solarize", picture, 255 - 255 * t),
    "autocontrast": lambda picture, t: _ops("autocontrast", picture),
    "equalise": lambda picture, t: _ops("equalize", picture),
}
SIGNED = frozenset(
    ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "colour", "contrast", "sharpness")
)


def _resampling() -> Any:
    from PIL import Image

    return Image.Resampling


def _rgb(image: Any) -> Any:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise SteerError(f"a {type(image).__name__} cannot be changed; give a PIL image")
    return image if image.mode == "RGB" else image.convert("RGB")
