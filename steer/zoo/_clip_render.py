"""One downstream picture of a glyph: turned, tinted, on a gradient with or without clutter, blurred and noisy.

The training of tiny-clip saw soft grounds and smaller turns, but no clutter, no blur, no noise and not these drawings:
the gap makes zero-shot mediocre. How strong all this is was chosen on "val" pictures, for zero-shot near 0.3 to 0.5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SIDE = 48  # pixels
TURN = 20.0  # degrees, either way
SCALE = (0.6, 0.95)  # of the picture's side
HUE = 15.0  # degrees, either way
SHAPES = (0, 2)  # of clutter, from and below: one in half of the pictures
BLUR = (0.0, 0.6)  # pixels, the radius of a Gaussian
NOISE = (2.0, 12.0)  # the standard deviation, of 255


def _tint(rng: np.random.Generator) -> Any:
    """A matrix [3, 3] that turns the hue and scales the saturation of RGB rows."""
    import numpy as np

    luma = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    angle, strength = math.radians(rng.uniform(-HUE, HUE)), rng.uniform(0.6, 1.3)
    c, s = math.cos(angle) * strength, math.sin(angle) * strength
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return (np.linalg.inv(luma) @ turn @ luma).T


def _ground(rng: np.random.Generator) -> Image:
    """A gradient of two colours with flat shapes on it, RGB."""
    import numpy as np
    from PIL import Image, ImageDraw

    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    angle = rng.uniform(0, 2 * math.pi)
    share = ((x * math.cos(angle) + y * math.sin(angle)) / 2.83 + 0.5)[..., None]
    first, second = rng.uniform(20, 250, (2, 3))
    ground = Image.fromarray((first * share + second * (1 - share)).astype(np.uint8))
    pen = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(*SHAPES))):
        colour = tuple(rng.integers(20, 250, 3).tolist())
        left, top = rng.uniform(-12, SIDE - 4, 2).tolist()
        wide, high = rng.uniform(5, 22, 2).tolist()
        kind = rng.integers(3)
        if kind == 0:
            pen.ellipse((left, top, left + wide, top + high), fill=colour)
        elif kind == 1:
            pen.rectangle((left, top, left + wide, top + high), fill=colour)
        else:
            pen.line((left, top, *rng.uniform(0, SIDE, 2).tolist()), fill=colour, width=int(rng.integers(1, 4)))
    return ground


def render(glyph: Image, rng: np.random.Generator) -> Image:
    """A glyph (48 x 48, RGBA) as one corrupted picture (48 x 48, RGB); everything is drawn from `rng`."""
    import numpy as np
    from PIL import Image, ImageFilter

    pixels = np.asarray(glyph).astype(np.float64)
    tinted = pixels[..., :3] @ _tint(rng)
    tinted = (tinted - 127.5) * rng.uniform(0.7, 1.2) + 127.5 + rng.uniform(-30, 30)
    pixels = np.concatenate([tinted.clip(0, 255), pixels[..., 3:]], -1).astype(np.uint8)

    scale, angle = rng.uniform(*SCALE), math.radians(rng.uniform(-TURN, TURN))
    dx, dy = rng.uniform(-1, 1, 2) * (1 - scale) / 2 * SIDE
    cos, sin, half = math.cos(angle) / scale, math.sin(angle) / scale, SIDE / 2
    # PIL asks where in the glyph each place of the picture comes from
    place = (
        cos,
        sin,
        half - cos * (half + dx) - sin * (half + dy),
        -sin,
        cos,
        half + sin * (half + dx) - cos * (half + dy),
    )
    moved = Image.fromarray(pixels, "RGBA").transform(
        (SIDE, SIDE), Image.Transform.AFFINE, place, resample=Image.Resampling.BILINEAR
    )
    picture = _ground(rng)
    picture.paste(moved, (0, 0), moved)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    noisy = np.asarray(picture) + rng.standard_normal((SIDE, SIDE, 3), np.float32) * np.float32(rng.uniform(*NOISE))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
