"""Training pictures, many at a time: one glyph on a plain background, moved, scaled, turned and tinted a little."""

from __future__ import annotations

import math

import numpy as np
import torch
from captions import COLOURS, POSITIONS, SIZES
from torch.nn.functional import affine_grid, grid_sample

CANVAS = 48  # pixels
SIDES = {"small": (24, 30), "medium": (31, 37), "big": (38, 45)}  # the glyph's side in pixels, from and to
TURN = 12  # degrees
HUE = 10  # degrees: more would make a red apple a green one
# from RGB to luma and two axes of chroma, in whose plane the hue is an angle
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = torch.linalg.inv(_YIQ)


def tint(hue: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """Matrices [n, 3, 3] that turn the hue by an angle (radians) and scale the saturation of an RGB column."""
    c, s = hue.cos() * saturation, hue.sin() * saturation
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rows = torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).reshape(-1, 3, 3)
    return _RGB @ rows @ _YIQ


def compose(glyphs: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Glyphs [n, 48, 48, 4] uint8 to pictures [n, 3, 48, 48] in -1..1 and what was drawn: colour, size, position."""
    n = len(glyphs)
    draw = lambda low, high: torch.from_numpy(rng.uniform(low, high, n).astype(np.float32))  # noqa: E731
    rgba = torch.from_numpy(glyphs).permute(0, 3, 1, 2).float().div_(255)
    alpha, rgb = rgba[:, 3:], rgba[:, :3]

    matrix = tint(draw(-HUE, HUE).deg2rad(), draw(0.75, 1.2))
    rgb = torch.einsum("nij,njhw->nihw", matrix, rgb)
    contrast, light = draw(0.8, 1.15)[:, None, None, None], draw(-0.1, 0.1)[:, None, None, None]
    rgb = ((rgb - 0.5) * contrast + 0.5 + light).clamp_(0, 1)

    size = rng.integers(len(SIZES), size=n)
    sides = np.array([SIDES[s] for s in SIZES], np.float32)[size]
    side = torch.from_numpy(rng.uniform(sides[:, 0], sides[:, 1]).astype(np.float32))
    room = (1 - side / CANVAS).clamp_min(0)  # how far the centre may move, in half pictures
    x, y = draw(-1, 1) * room, draw(-1, 1) * room
    angle = draw(-TURN, TURN) * (math.pi / 180)
    # the grid maps places in the picture to places in the glyph, so it scales by the inverse
    cos, sin = angle.cos() * CANVAS / side, angle.sin() * CANVAS / side
    theta = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], -1).reshape(n, 2, 3)
    grid = affine_grid(theta, [n, 4, CANVAS, CANVAS], align_corners=False)
    moved = grid_sample(torch.cat([rgb * alpha, alpha], 1), grid, align_corners=False)

    colour = rng.integers(len(COLOURS), size=n)
    ground = np.array(list(COLOURS.values()), np.float32)[colour] + rng.normal(0, 10, (n, 3))
    ground = torch.from_numpy(ground.clip(0, 255).astype(np.float32) / 255)[:, :, None, None]
    pictures = moved[:, :3] + ground * (1 - moved[:, 3:])

    # thirds of the way from one edge to the other; a big glyph hardly moves, so the words follow the room it has
    column, row = ((v / 0.15).round().clamp(-1, 1).int().tolist() for v in (x, y))
    words = list(COLOURS)
    seen = [
        {"colour": words[colour[i]], "size": SIZES[size[i]], "position": POSITIONS[3 * (row[i] + 1) + column[i] + 1]}
        for i in range(n)
    ]
    return pictures.mul_(2).sub_(1), seen
