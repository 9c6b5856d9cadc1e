"""Training pictures, many at a time: one glyph on a soft background, moved, scaled, turned and tinted."""

from __future__ import annotations

import numpy as np
import torch
from captions import COLOURS, MIXED, POSITIONS, SIZES
from torch.nn.functional import affine_grid, grid_sample, interpolate

CANVAS = 48  # pixels
SIDES = {"small": (24, 30), "medium": (31, 37), "big": (38, 45)}  # the glyph's side in pixels, from and to
TURN = 12  # degrees
STRETCH = 0.15  # of the glyph's width against its height
HUE = 14  # degrees: more would make a red apple a green one
WILD = 0.3  # of the pictures have a background of no one colour
# from RGB to luma and two axes of chroma, in whose plane the hue is an angle
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = torch.linalg.inv(_YIQ)


def tint(hue: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """Matrices [n, 3, 3] that turn the hue by an angle (radians) and scale the saturation of an RGB column."""
    c, s = hue.cos() * saturation, hue.sin() * saturation
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).reshape(-1, 3, 3)
    return _RGB @ rows @ _YIQ


def grounds(colour: np.ndarray, wild: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Backgrounds [n, 3, CANVAS, CANVAS] in 0..1: about the named colour or, where `wild`, of any; smooth in space."""
    n = len(colour)
    base = np.array(list(COLOURS.values()), np.float32)[colour] + rng.normal(0, 8, (n, 3))
    cells = int(rng.integers(2, 7))  # the same for a batch: a few coarse cells, blown up, are a gradient or blobs
    coarse = (
        rng.normal(0, 1, (n, 3, cells, cells)) * (rng.uniform(0, 35, n) * (rng.random(n) < 0.7))[:, None, None, None]
    )
    coarse = np.where(wild[:, None, None, None], rng.uniform(0, 255, coarse.shape), coarse + base[:, :, None, None])
    coarse = torch.from_numpy((coarse / 255).astype(np.float32))
    return interpolate(coarse, size=(CANVAS, CANVAS), mode="bilinear", align_corners=True).clamp_(0, 1)


def compose(
    glyphs: np.ndarray, rng: np.random.Generator, flip: np.ndarray, colour: np.ndarray
) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Glyphs [n, 48, 48, 4] in 0..255 to pictures [n, 3, 48, 48] in -1..1 and what was drawn: colour, size, position.

    Where `flip` [n] is true the glyph may be mirrored; `colour` [n] is an index into COLOURS for the background.
    """
    n = len(glyphs)
    draw = lambda low, high: torch.from_numpy(rng.uniform(low, high, n).astype(np.float32))  # noqa: E731
    rgba = torch.from_numpy(glyphs).permute(0, 3, 1, 2).float().div_(255)
    alpha, rgb = rgba[:, 3:], rgba[:, :3]

    matrix = tint(draw(-HUE, HUE).deg2rad(), draw(0.6, 1.3))
    rgb = torch.einsum("nij,njhw->nihw", matrix, rgb)
    contrast, light = draw(0.7, 1.25)[:, None, None, None], draw(-0.12, 0.12)[:, None, None, None]
    rgb = ((rgb - 0.5) * contrast + 0.5 + light).clamp_(0, 1)

    size = rng.integers(len(SIZES), size=n)
    sides = np.array([SIDES[s] for s in SIZES], np.float32)[size]
    side = torch.from_numpy(rng.uniform(sides[:, 0], sides[:, 1]).astype(np.float32))
    room = (1 - side / CANVAS).clamp_min(0)  # how far the centre may move, in half pictures
    x, y = draw(-1, 1) * room, draw(-1, 1) * room
    angle = draw(-TURN, TURN).deg2rad()
    # the grid maps places in the picture to places in the glyph, so it scales by the inverse
    stretch = (1 + draw(-STRETCH, STRETCH)).sqrt()
    wide = CANVAS / side * stretch * torch.from_numpy(np.where(flip & (rng.random(n) < 0.5), -1.0, 1.0)).float()
    high = CANVAS / side / stretch
    a, b, c, d = angle.cos() * wide, angle.sin() * wide, -angle.sin() * high, angle.cos() * high
    theta = torch.stack([a, b, -a * x - b * y, c, d, -c * x - d * y], -1).reshape(n, 2, 3)
    grid = affine_grid(theta, [n, 4, CANVAS, CANVAS], align_corners=False)
    moved = grid_sample(torch.cat([rgb * alpha, alpha], 1), grid, align_corners=False)

    wild = rng.random(n) < WILD
    pictures = moved[:, :3] + grounds(colour, wild, rng) * (1 - moved[:, 3:])

    # thirds of the way from one edge to the other; a big glyph hardly moves, so it is in the centre
    column, row = ((v / 0.15).round().clamp(-1, 1).int().tolist() for v in (x, y))
    words = list(COLOURS)
    seen = [
        {
            "colour": MIXED if wild[i] else words[colour[i]],
            "size": SIZES[size[i]],
            "position": POSITIONS[3 * (row[i] + 1) + column[i] + 1],
        }
        for i in range(n)
    ]
    return pictures.mul_(2).sub_(1), seen
