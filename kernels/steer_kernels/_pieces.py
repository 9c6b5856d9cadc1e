"""Working piece by piece, so that what is made in between stays in a CPU's caches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.compiler import is_compiling

# How many numbers are worked on at a time.
CHUNK = 1 << 18


def whole(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether a result of x's size is better made in one go.

    It is where it is small or on a device of its own, and it has to be where something traces or differentiates.
    """
    if x.device.type != "cpu" or x.numel() <= 4 * CHUNK or is_compiling():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *others))


def pieces(x: torch.Tensor, axis: int, size: int | None = None) -> Iterable[slice]:
    """Slices of one axis of x, each of about `size` numbers, CHUNK if that is not said."""
    length = x.shape[axis]
    each = max(1, (size or CHUNK) * length // max(1, x.numel()))
    return (slice(start, start + each) for start in range(0, length, each))
