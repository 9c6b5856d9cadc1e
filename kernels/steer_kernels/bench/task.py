"""One row of the benchmark: an operation on tensors of one size, and everything that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[..., Any]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 1e-2}


class Missing(Exception):
    """A rival that is not installed here, or cannot do this row; says why."""


def same(result: Any) -> Any:
    """A result as it is."""
    return result


@dataclass(frozen=True)
class Rival:
    """Somebody else's kernel for the same job.

    Attributes:
        make: gives the call, on the same inputs as ours; raises Missing.
        of_ours, of_theirs: the part of either result that the two have in common, in the same form.
        tolerance: what the results may differ by, relative; None: as all others.
    """

    make: Callable[[], Call]
    of_ours: Call = same
    of_theirs: Call = same
    tolerance: float | None = None


@dataclass(frozen=True)
class Task:
    """What one row measures.

    Attributes:
        kernel: the operation's name in `steer_kernels`.
        form: which use of it, in a word or two.
        sizes: by letter, as in the operation's docstring.
        dtype: of the large tensors.
        make: the inputs, from a generator on the device; with a backward, last the gradient of the result.
        ours: called with the operation and the inputs.
        eager: the plain formula, called with the inputs.
        floor: bytes that must be moved: every input read once, every result written once.
        learn: the inputs that want gradients, by place; empty: forward only.
        reads: what is written is small beside what is read, so reading is measured too.
        large: the row counts for the targets.
        early: a target looks at it though it is not large; run with those that are.
        fresh: on a CPU, timed in new memory as well.
        compiled: torch.compile is raced on it, which takes seconds.
        gated: the row counts for the targets of gated operations.
        decode: one token: the host's time a call, and a replayed graph's, are measured instead.
        rivals: by name.
        tolerance: what results may differ by, relative; None: by dtype; 0: not at all.
    """

    kernel: str
    form: str
    sizes: Mapping[str, int]
    dtype: torch.dtype
    make: Callable[[torch.Generator], tuple[Any, ...]]
    ours: Call
    eager: Call
    floor: int
    learn: tuple[int, ...] = ()
    reads: bool = False
    large: bool = False
    early: bool = False
    fresh: bool = False
    compiled: bool = False
    gated: bool = False
    decode: bool = False
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    tolerance: float | None = None

    @property
    def direction(self) -> str:
        """`forward` or `forward+backward`."""
        return "forward+backward" if self.learn else "forward"

    @property
    def short(self) -> str:
        """The dtype as options spell it."""
        return next(name for name, dtype in DTYPES.items() if dtype is self.dtype)

    @property
    def label(self) -> str:
        """The row in one line, for progress and for `--only`."""
        sizes = " ".join(f"{letter}={size}" for letter, size in self.sizes.items())
        return f"{self.kernel} {self.form} {self.direction} {sizes} {self.short}"

    @property
    def slack(self) -> float:
        """The relative tolerance."""
        return TOLERANCE[self.dtype] if self.tolerance is None else self.tolerance

    def call(self, function: Call) -> Call:
        """The function as this row times it: alone, or with the backward to the inputs that learn."""
        return with_backward(function, self.learn) if self.learn else function


def with_backward(function: Call, learn: tuple[int, ...]) -> Call:
    """Forward and backward in one call, which returns the gradients; the last input is the gradient of the result."""

    def both(*inputs: Any) -> tuple[torch.Tensor, ...]:
        *given, grad = inputs
        leaves = [x.detach().requires_grad_() if i in learn else x for i, x in enumerate(given)]
        return torch.autograd.grad(function(*leaves), [leaves[i] for i in learn], grad)

    return both


def normal(
    generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32, by: float = 1.0
) -> torch.Tensor:
    """Normal numbers on the generator's device."""
    made = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    return made if by == 1.0 else made.mul_(by)


def size_of(dtype: torch.dtype) -> int:
    """Bytes of an element."""
    return torch.empty(0, dtype=dtype).element_size()
