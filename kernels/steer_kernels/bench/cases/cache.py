"""Rows for `compact` (keys (1, H_kv, S, d), values (1, H_kv, S, d_v)) and `key_bias`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .. import eager
from ..task import Task, normal, size_of

BF16, FP32 = torch.bfloat16, torch.float32
LENGTHS = {"quick": [64], "cpu": [4096, 32_768], "cuda": [4096, 32_768, 131_072]}
LARGE = {"quick": 64, "cpu": 32_768, "cuda": 131_072}
KEPT = 0.3
FORMS = ("shared", "per head", "ragged")
# (H_kv, d, d_v)
GROUPED = {"quick": (2, 32, 32), "cpu": (8, 128, 128), "cuda": (8, 128, 128)}
WIDE = {"quick": (2, 48, 32), "cpu": (16, 192, 128), "cuda": (16, 192, 128)}
# (H, H_kv, d, T)
BIASED = {"quick": [(4, 2, 32, 16)], "cpu": [(32, 8, 128, 1024)], "cuda": [(32, 8, 128, 4096), (32, 8, 128, 32_768)]}
EXTRA, RANK = 8, 1


def tasks(scale: str) -> Iterator[Task]:
    """Columns for all heads alike at every length, for each head its own, as many for each as it likes."""
    large = LARGE[scale]
    for dtype in (BF16, FP32):
        for length in LENGTHS[scale]:
            if dtype is BF16 or length == large or scale == "cpu":
                for form in FORMS[:2]:
                    yield _compact(form, *GROUPED[scale], length, dtype, length == large)
    yield _compact("ragged", *GROUPED[scale], large, BF16, False)
    yield _compact("shared", *WIDE[scale], LENGTHS[scale][len(LENGTHS[scale]) // 2], BF16, False)
    for size in BIASED[scale]:
        yield _bias(*size, size == BIASED[scale][-1])


def _compact(form: str, kv: int, d: int, d_v: int, length: int, dtype: torch.dtype, large: bool) -> Task:
    count = int(KEPT * length)

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        def columns() -> torch.Tensor:
            drawn = torch.randperm(length, generator=generator, device=generator.device)
            return drawn[:count].sort().values

        keys, values = (normal(generator, 1, kv, length, width, dtype=dtype) for width in (d, d_v))
        if form == "shared":
            return keys, values, columns()
        index = torch.stack([columns() for _ in range(kv)])[None]
        if form == "per head":
            return keys, values, index
        return keys, values, index, torch.rand(index.shape, generator=generator, device=keys.device) < 0.5

    # As many heads' columns as are kept, read and written; of the ragged form about half.
    kept = count * kv * (d + d_v) * size_of(dtype)
    ragged = form == "ragged"
    return Task(
        "compact",
        form,
        {"H_kv": kv, "S": length, "keep": count, "d": d, "d_v": d_v},
        dtype,
        make,
        (lambda f, k, v, i, valid: f(k, v, i, valid=valid)) if ragged else lambda f, k, v, i: f(k, v, i),
        eager.compact_ragged if ragged else eager.compact,
        kept if ragged else 2 * kept,
        large=large,
        fresh=large,
        compiled=large and dtype is BF16 and form == "per head",
        tolerance=0.0,
    )


def _bias(heads: int, kv: int, d: int, t: int, large: bool) -> Task:
    scaling = d**-0.5

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        query = normal(generator, 1, heads, t, d, dtype=BF16)
        key, value = (normal(generator, 1, kv, t, d, dtype=BF16) for _ in range(2))
        return query, key, value, normal(generator, 1, heads, t, RANK), normal(generator, 1, kv, t, RANK)

    rows = (heads + 2 * kv) * t
    return Task(
        "key_bias",
        "K5",
        {"H": heads, "H_kv": kv, "d": d, "T": t},
        BF16,
        make,
        lambda f, q, k, v, a, b: f(q, k, v, a, b, scaling, EXTRA),
        lambda q, k, v, a, b: eager.key_bias(q, k, v, a, b, scaling, EXTRA),
        rows * (2 * d + EXTRA) * 2 + 4 * (heads + kv) * t * RANK,
        large=large,
        compiled=large,
    )
