"""Rows for `jsd`: two logit matrices (N, V); the second is the first with noise, as a student is beside its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .. import eager
from ..rivals import liger_jsd
from ..task import Task, normal, size_of

BF16, FP32 = torch.bfloat16, torch.float32

# (N, V): vocabularies of 32 to 256 thousand; N tokens that are compared at a time
SIZES = {
    "quick": {BF16: [(4, 1000)], FP32: [(4, 1000)]},
    "cpu": {BF16: [(64, 32_000), (64, 151_936)], FP32: [(64, 32_000), (512, 32_000), (64, 128_256), (64, 151_936)]},
    "cuda": {
        BF16: [(64, 151_936), (512, 151_936), (2048, 151_936), (4096, 32_000), (2048, 128_256), (1024, 256_000)],
        FP32: [(64, 151_936), (2048, 151_936)],
    },
}
LARGE = {"quick": [(4, 1000)], "cpu": [(512, 32_000), (64, 151_936)], "cuda": [(2048, 151_936), (2048, 128_256)]}
LEARNED = {
    "quick": [(4, 1000)],
    "cpu": [(64, 32_000)],
    "cuda": [(64, 151_936), (4096, 32_000), (2048, 151_936)],
}


def tasks(scale: str) -> Iterator[Task]:
    """Forward at every size, and with the backward to the first matrix, the student's."""
    for dtype, sizes in SIZES[scale].items():
        for size in sizes:
            yield _task(*size, dtype, scale, size in LARGE[scale], False)
        for size in LEARNED[scale] if dtype is BF16 or scale == "cpu" else LEARNED[scale][-1:]:
            yield _task(*size, dtype, scale, size == LEARNED[scale][-1], True)


def _task(n: int, v: int, dtype: torch.dtype, scale: str, large: bool, backward: bool) -> Task:
    def make(generator: torch.Generator) -> tuple[Any, ...]:
        first = normal(generator, n, v, dtype=dtype, by=3.0)
        second = first + normal(generator, n, v, dtype=dtype)
        grad = torch.full((n,), 1 / n, device=first.device)
        return (first, second, grad) if backward else (first, second)

    # Forward: both read. Backward: both read, one gradient written.
    return Task(
        "jsd",
        "beta=1/2",
        {"N": n, "V": v},
        dtype,
        make,
        lambda f, first, second: f(first, second),
        eager.jsd,
        n * v * size_of(dtype) * (5 if backward else 2),
        learn=(0,) if backward else (),
        reads=not backward,
        large=large,
        fresh=large and not backward,
        early=dtype is FP32 and v == 32_000 and not backward,
        compiled=large and (dtype is BF16 if scale == "cuda" else n == 64) and v != 128_256,
        rivals={"liger": liger_jsd(backward, scale == "cuda")},
        # The rows are fp32 whatever the logits are; the gradient has their dtype.
        tolerance=None if backward else 1e-3,
    )
