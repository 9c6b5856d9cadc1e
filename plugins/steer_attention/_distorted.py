"""Pictures that show less, in whatever layout a processor gave them: noised, blurred or blank, of the same shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from steer.errors import InterventionError

Distortion = Callable[[torch.Tensor], torch.Tensor]

STEPS = 1000
"""How many steps the diffusion has."""

SPECK = 2.0**-14
"""As good as nothing, and no 0 in fp16."""


def shares(step: int) -> tuple[float, float]:
    """What a diffusion leaves of a picture after `step` of 1000 steps and how much noise there is instead.

    beta_i = 1e-5 + (5e-3 - 1e-5) sigmoid(x_i), x from -6 to 6 in equal steps; the share left is
    A = (1 - beta_0) ... (1 - beta_step), and these are sqrt(A) and sqrt(1 - A).
    """
    rates = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    left = float((1 - rates)[: step + 1].prod())
    return math.sqrt(left), math.sqrt(1 - left)


def noised(step: int, seed: int) -> Distortion:
    """sqrt(A) x + sqrt(1 - A) z, z normal and drawn on the CPU from `seed`, so that it is the same on every device.

    Pictures along the first axis get the same z, whatever stands beside them; places along further axes between that
    and the picture's own (tiles, pictures of one prompt) each their own, the same however many there are. In a flat
    layout, patches (N, d), z is one draw for all: there a picture's noise depends on the patches before it.
    """
    keep, noise = shares(step)

    def change(pixels: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(pixels.dtype, torch.float32)
        z = _normal(pixels.shape, seed).to(pixels.device, wide)
        return (keep * pixels.to(wide) + noise * z).to(pixels.dtype)

    return _but_padding(change)


def blanked() -> Distortion:
    """Every value 0: the colour that the processor subtracts."""

    def change(pixels: torch.Tensor) -> torch.Tensor:
        empty = torch.zeros_like(pixels)
        if pixels.ndim > 4:
            # Where prompts have several pictures, one whose every value is 0 is padding to some models, and dropped.
            empty[..., 0, 0, 0] = SPECK
        return empty

    return _but_padding(change)


def blurred(size: float) -> Distortion:
    """Every pixel the mean of a square around it, as wide as `size` of the shorter side, cut at the edges.

    Raises:
        InterventionError: in a forward, if pixels come as patches in a row, where no neighbours are known.
    """

    def change(pixels: torch.Tensor) -> torch.Tensor:
        if pixels.ndim < 4:
            raise InterventionError(
                f"vcd: pictures come as patches {list(pixels.shape)}, not as rows and columns of pixels, and cannot be "
                'blurred; use distortion="noise" or "blank"'
            )
        reach = max(1, round(size * min(pixels.shape[-2:]) / 2))
        flat = pixels.flatten(0, -4).to(torch.promote_types(pixels.dtype, torch.float32))
        mean = torch.nn.functional.avg_pool2d(flat, 2 * reach + 1, 1, reach, count_include_pad=False)
        return mean.view(pixels.shape).to(pixels.dtype)

    return _but_padding(change)


def _normal(shape: torch.Size, seed: int) -> torch.Tensor:
    """As `noised` says, fp32, to be broadcast to `shape`."""
    generator = torch.Generator().manual_seed(seed)
    if len(shape) < 3:
        return torch.randn(shape, generator=generator)
    own = shape[1:] if len(shape) < 5 else shape[-3:]
    between = shape[1:-3] if len(shape) > 4 else torch.Size()
    drawn = [torch.randn(own, generator=generator) for _ in range(math.prod(between))]
    return torch.stack(drawn).view(*between, *own)


def _but_padding(change: Distortion) -> Distortion:
    """The change, but pictures in a row of several that are padding, every value 0, stay it."""

    def but_padding(pixels: torch.Tensor) -> torch.Tensor:
        changed = change(pixels)
        if pixels.ndim < 5:
            return changed
        empty = (pixels == 0).flatten(-3).all(-1)[..., None, None, None]
        return torch.where(empty, pixels, changed)

    return but_padding
