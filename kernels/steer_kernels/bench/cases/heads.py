"""Rows for `head_shift` and `query_shift`: o and q (1, T, H, d), learned tensors in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .. import eager
from ..task import Task, normal, size_of

BF16, FP32 = torch.bfloat16, torch.float32
RANK = 8

# (H, d, T); H d is the hidden size: 2048, 4096, 8192
SIZES = {
    "quick": [(2, 32, 16)],
    "cpu": [(32, 128, 32), (32, 128, 1024), (16, 128, 1024), (64, 128, 1024), (32, 64, 1024)],
    "cuda": [
        (32, 128, 32),
        (32, 128, 1024),
        (32, 128, 8192),
        (32, 128, 32768),
        (16, 128, 32768),
        (64, 128, 32768),
        (32, 64, 32768),
    ],
}
LARGE = {"quick": (2, 32, 16), "cpu": (32, 128, 1024), "cuda": (32, 128, 32768)}
LEARNED = {"quick": [(2, 32, 16)], "cpu": [(32, 128, 1024)], "cuda": [(32, 128, 1024), (32, 128, 32768)]}
HEAD_FORMS, QUERY_FORMS = ("minus lse", "LayerNorm gate"), ("gate", "gate RoPE")


def tasks(scale: str) -> Iterator[Task]:
    """The first form of either at every size, the second at the large one."""
    large, learned = LARGE[scale], LEARNED[scale]
    for forms, build in ((HEAD_FORMS, _head), (QUERY_FORMS, _query)):
        for form in forms:
            first = form == forms[0]
            for dtype in (BF16, FP32):
                for size in SIZES[scale] if first and dtype is BF16 else [large]:
                    yield build(form, *size, dtype, large=size == large)
            for size in learned if first else learned[-1:]:
                yield build(form, *size, BF16, large=size == learned[-1], backward=True)
        yield build(forms[0], learned[-1][0], learned[-1][1], 1, BF16, decode=True)


def _head(
    form: str,
    heads: int,
    d: int,
    t: int,
    dtype: torch.dtype,
    large: bool = False,
    backward: bool = False,
    decode: bool = False,
) -> Task:
    one, lse, norm = t * heads * d * size_of(dtype), form == "minus lse", form != "minus lse"

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        o, q = (normal(generator, 1, t, heads, d, dtype=dtype) for _ in range(2))
        w, b, v = normal(generator, heads, d, by=d**-0.5), normal(generator, heads), normal(generator, heads, d)
        made = (o, q, w, b, v, normal(generator, 1, t, heads) if lse else None)
        return (*made, normal(generator, 1, t, heads, d, dtype=dtype)) if backward else made

    # Forward: q and o read, y written. Backward: q and the gradient read, that of q written; that of o is the
    # gradient itself.
    small = 4 * t * heads if lse else 0
    return Task(
        "head_shift",
        form,
        {"H": heads, "d": d, "T": t},
        dtype,
        make,
        lambda f, o, q, w, b, v, z: f(o, q, w, b, v, z, layer_norm=norm),
        lambda o, q, w, b, v, z: eager.head_shift(o, q, w, b, v, z, layer_norm=norm),
        (6 * one + 2 * small) if backward else 3 * one + small,
        learn=(0, 1, 2, 3, 4) if backward else (),
        large=large,
        compiled=large and dtype is BF16,
        gated=large,
        decode=decode,
    )


def _query(
    form: str,
    heads: int,
    d: int,
    t: int,
    dtype: torch.dtype,
    large: bool = False,
    backward: bool = False,
    decode: bool = False,
) -> Task:
    one, rope = t * heads * d * size_of(dtype), form == "gate RoPE"

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        q = normal(generator, 1, t, heads, d, dtype=dtype)
        u_q, u_k = (normal(generator, heads, d, RANK, by=d**-0.5) for _ in range(2))
        made = (q, u_q, u_k, normal(generator, heads, d, by=d**-0.5), normal(generator, heads))
        if rope:
            angle = torch.rand(1, t, d // 2, generator=generator, device=q.device).mul_(6.28).repeat(1, 1, 2)
            made = (*made, angle.cos().to(dtype), angle.sin().to(dtype))
        return (*made, normal(generator, 1, t, heads, d, dtype=dtype)) if backward else made

    def ours(f: Any, q: Any, u_q: Any, u_k: Any, w: Any, b: Any, cos: Any = None, sin: Any = None) -> Any:
        return f(q, u_q, u_k, w, b, layer_norm=True, cos=cos, sin=sin)

    # Forward: q read, y written. Backward: q and the gradient read, that of q written.
    small = 2 * t * d * size_of(dtype) if rope else 0
    return Task(
        "query_shift",
        form,
        {"H": heads, "d": d, "T": t, "r": RANK},
        dtype,
        make,
        ours,
        eager.rope_query_shift if rope else eager.query_shift,
        (5 * one + 2 * small) if backward else 2 * one + small,
        learn=(0, 1, 2, 3, 4) if backward else (),
        large=large,
        compiled=large and dtype is BF16,
        gated=large,
        decode=decode,
    )
