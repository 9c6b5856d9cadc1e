"""What every operation in Triton shares: when it may run, and what runs where it may not."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch.compiler import is_compiling

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PLAIN = (torch.Tensor, torch.nn.Parameter)
L = TypeVar("L", bound=Callable[..., Any])


def runs(*tensors: torch.Tensor | None) -> bool:
    """Whether Triton can take these: on CUDA (or interpreted), and no wider than fp32."""
    given = [t for t in tensors if t is not None]
    return (given[0].is_cuda or INTERPRETED) and all(t.dtype != torch.float64 for t in given)


def on_its_device(launcher: L) -> L:
    """Have a launcher run on its first tensor's device: Triton launches on the current one, whatever it is given."""

    @functools.wraps(launcher)
    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not x.is_cuda or x.get_device() == torch.cuda.current_device():
            return launcher(x, *args, **kwargs)
        with torch.cuda.device(x.device):
            return launcher(x, *args, **kwargs)

    return cast(L, run)


def direct(*tensors: torch.Tensor | None) -> bool:
    """Whether the kernel may be launched at once, without torch's operator around it: nothing traces or differentiates.

    The operator costs tens of microseconds a call, as much as decoding one token takes in all other kernels of a layer.
    """
    if is_compiling():
        return False
    grad = torch.is_grad_enabled()
    return all(t is None or (type(t) in PLAIN and not (grad and t.requires_grad)) for t in tensors)


def like(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Bring y into the memory layout that `torch.empty_like(x)` has, as the operator's fake implementation promises."""
    out = torch.empty_like(x)
    return y if y.stride() == out.stride() and y.dtype == out.dtype else out.copy_(y)


def by_autograd(
    function: Callable[..., torch.Tensor],
    inputs: Sequence[Any],
    wanted: Sequence[bool],
    grad: torch.Tensor,
) -> list[torch.Tensor | None]:
    """The gradients of a torch reference, for where Triton cannot run.

    Called from the backward formula, never from inside an operator: there autograd is switched off for good.
    """
    leaves = [
        x.detach().requires_grad_(w) if isinstance(x, torch.Tensor) else x for x, w in zip(inputs, wanted, strict=True)
    ]
    with torch.enable_grad():
        out = function(*leaves)
    asked = [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]
    found = iter(torch.autograd.grad(out, asked, grad.to(out.dtype), allow_unused=True) if asked else ())
    return [next(found) if w else None for w in wanted]


def block(size: int, least: int = 1) -> int:
    """The next power of two, as Triton's blocks are."""
    return max(least, 1 << max(0, size - 1).bit_length())


def columns(width: int) -> int:
    """Columns at a time of rows that are copied: a power of two that divides the width, unless too narrow a one."""
    divides = width & -width
    return min(divides if divides >= 32 else block(width), 256)


def programs(device: torch.device, each: int) -> int:
    """How many programs fill the device `each` times over; a handful under the interpreter, where they take turns."""
    if not torch.cuda.is_available():
        return 3
    return each * torch.cuda.get_device_properties(device).multi_processor_count
