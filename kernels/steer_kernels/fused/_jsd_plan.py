"""How `jsd` is launched: the plan, its tiles, and what beta makes of the formula. Plain functions, to be tuned."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ._jsd_terms import END, HALF, MIXED
from ._op import INTERPRETED, block

LN2 = math.log(2.0)


class Machine(NamedTuple):
    """What a plan depends on: how many programs run at a time at the least, and how many bytes L2 keeps."""

    processors: int
    l2: int


def machine(device: torch.device) -> Machine:
    """The device's; a small one under the interpreter."""
    if device.type != "cuda":
        return Machine(3, 1 << 20)
    found = torch.cuda.get_device_properties(device)
    return Machine(found.multi_processor_count, found.L2_cache_size)


class Settings(NamedTuple):
    """How one launch is cut: `lanes` x `each` logits a tile, and a row into `slices` of `span` columns."""

    lanes: int
    each: int
    warps: int
    slices: int
    span: int


def choose(rows: int, size: int, element: int, of: Machine) -> str:
    """The plan for (rows, size) logits of `element` bytes: see the top of this file."""
    pair = 2 * size * element
    # Half of L2: the other half is what the next rows bring in.
    if rows >= of.processors and of.processors * pair <= of.l2 // 2:
        return "row"
    if rows * pair <= of.l2 // 2 or INTERPRETED or settings("group", rows, size, element, of).slices > of.processors:
        return "split"
    return "group"


def settings(plan: str, rows: int, size: int, element: int, of: Machine, save: bool = False) -> Settings:
    """Tiles and slices; a thread loads 16 bytes at a time. The numbers are what was fastest on an H100.

    A group's slice of fp32 is one tile that stays in registers, and memory is what it waits for. In half types the
    arithmetic takes longer than memory does, and small slices that are read twice, the second time from L2, overlap
    better.
    """
    each = 16 // element
    warps, pairs, times = 8, 16, 1
    if plan == "row":
        warps = 16
    elif plan == "group":
        warps, pairs, times = (8, 8, 4) if element <= 2 else (4, 32 if save else 64, 1)
    lanes = warps * 32 * pairs // each
    if INTERPRETED or size < lanes * each:
        # Short rows, and the interpreter, whose tests have them: one tile, or a few.
        warps, times = 4, 1
        lanes = block(-(-size // each), 1 if INTERPRETED else 128)
        if INTERPRETED:
            lanes = min(lanes, 64)
    tile = lanes * each
    tiles = -(-size // tile)
    if plan == "row":
        return Settings(lanes, each, warps, 1, size)
    if plan == "group":
        return Settings(lanes, each, warps, -(-tiles // times), times * tile)
    wanted = max(1, min(tiles, -(-8 * of.processors // max(1, rows)), 1024))
    span = -(-tiles // wanted) * tile
    return Settings(lanes, each, warps, -(-size // span), span)


class Weights(NamedTuple):
    """What beta makes of the sum: which formula, in which units, below which bound."""

    mode: int
    unit: float
    bound: float
    beta: float
    series: tuple[float, float, float, float, float, float, float]


def weights(beta: float) -> Weights:
    """For 0 <= beta < 1; at 1 the rows change places first.

    The series is sum_n (n-1) k_n (-d)^n / n!, k_n the cumulants of a coin that falls on q with weight 1 - beta.
    """
    none = (0.0,) * 7
    if beta == 0.5:
        return Weights(HALF, LN2 / 2, LN2, beta, none)
    if beta == 0.0:
        return Weights(END, LN2, math.inf, beta, none)
    other = 1 - beta
    var, tilt = beta * other, beta - other
    cumulants = (
        var,
        var * tilt,
        var * (1 - 6 * var),
        var * tilt * (1 - 12 * var),
        var * (1 - 30 * var + 120 * var**2),
        var * tilt * (1 - 60 * var + 360 * var**2),
        var * (1 - 126 * var + 1680 * var**2 - 5040 * var**3),
    )
    series = tuple((n - 1) * k * (-LN2) ** n / math.factorial(n) / LN2 for n, k in enumerate(cumulants, 2))
    bound = -(beta * math.log(beta) + other * math.log(other))
    return Weights(MIXED, LN2, bound, beta, series)


def packed(first: torch.Tensor, second: torch.Tensor, each: int) -> bool:
    """Whether every row of both can be read 16 bytes at a time, and Triton knows: it looks for multiples of 16."""
    return all(
        x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0 and 16 // x.element_size() >= each
        for x in (first, second)
    )
