"""Rows for `shift`: h (1, T, D), v (D,) in fp32, as a session holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .. import eager
from ..task import Call, Task, normal, size_of

SCALE = 0.5
BF16, FP32 = torch.bfloat16, torch.float32

# (D, T): hidden sizes of models of 1, 8 and 70 billion parameters; one token, a picture, a long prompt.
SIZES = {
    "quick": [(256, 1), (256, 32)],
    "cpu": [(4096, 32), (4096, 1024), (4096, 4096), (2048, 4096), (8192, 1024)],
    "cuda": [(4096, 32), (4096, 1024), (4096, 8192), (4096, 32768), (2048, 32768), (8192, 32768)],
}
LARGE = {"quick": (256, 32), "cpu": (4096, 4096), "cuda": (4096, 32768)}
LEARNED = {"quick": [(256, 32)], "cpu": [(4096, 1024)], "cuda": [(4096, 1024), (4096, 32768)]}


def tasks(scale: str) -> Iterator[Task]:
    """Every form at the large size; K1 at all of them."""
    large = LARGE[scale]
    for dtype in (BF16, FP32):
        for size in SIZES[scale] if dtype is BF16 or scale == "quick" else [large]:
            yield _task("K1", *size, dtype, large=size == large)
            if size[1] > 32 or scale == "quick":
                yield _task("K2", *size, dtype, large=size == large)
        for size in LEARNED[scale] if dtype is BF16 else LEARNED[scale][-1:]:
            for form in ("K1", "K2"):
                yield _task(form, *size, dtype, large=size == LEARNED[scale][-1], backward=True)
    yield _task("K1 gate rows", *large, BF16)
    yield _task("ICV", *large, BF16)
    for form in ("K1", "K2"):
        yield _task(form, 256 if scale == "quick" else 4096, 1, BF16, decode=True)


def _task(
    form: str, d: int, t: int, dtype: torch.dtype, large: bool = False, backward: bool = False, decode: bool = False
) -> Task:
    one = d * t * size_of(dtype)

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        h, v = normal(generator, 1, t, d, dtype=dtype), normal(generator, d)
        if form == "K1 gate rows":
            rows = torch.rand(1, t, generator=generator, device=h.device) < 0.5
            return h, v, normal(generator, 1, t, 1), rows
        return (h, v, normal(generator, 1, t, d, dtype=dtype)) if backward else (h, v)

    # The backward of K1 hands the gradient of h on as it came and sums it for v; that of K2 reads h again.
    again = (one if form == "K1" else 3 * one) if backward else 0
    ours, plain = _forms(form)
    return Task(
        "shift",
        form,
        {"D": d, "T": t},
        dtype,
        make,
        ours,
        plain,
        2 * one + again,
        learn=(0, 1) if backward else (),
        large=large,
        compiled=large and dtype is BF16,
        decode=decode,
    )


def _forms(form: str) -> tuple[Call, Call]:
    if form == "K1":
        return lambda f, h, v: f(h, v, scale=SCALE), lambda h, v: eager.shift(h, v, SCALE)
    if form == "K1 gate rows":
        return (
            lambda f, h, v, gate, rows: f(h, v, gate, rows, scale=SCALE),
            lambda h, v, gate, rows: eager.shift_rows(h, v, gate, rows, SCALE),
        )
    if form == "K2":
        return (
            lambda f, h, v: f(h, v, scale=SCALE, keep_norm=True),
            lambda h, v: eager.shift_keep_norm(h, v, SCALE),
        )
    # v is normal: as long as h, so that 0.02 of h's length moves it by about as much as h is long
    return (
        lambda f, h, v: f(h, v, scale=0.02, keep_norm=True, relative=True, cosine=True),
        lambda h, v: eager.icv(h, v, 0.02),
    )
