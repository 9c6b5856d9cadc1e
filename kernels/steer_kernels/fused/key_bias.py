"""K5's wider queries, keys and values in Triton: one launch reads each once and writes each once.

    q' = [q, a / scaling, 0],   k' = [k, b, 0],   v' = [v, 0]

Programs of one grid share the three tensors out among them. The gradients are slices and sums, which torch does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..key_bias import check
from ..key_bias import key_bias as public
from ._op import block, columns, direct, on_its_device, runs

REFERENCE = public.reference  # type: ignore[attr-defined]


@triton.jit
def _widened(
    x, factors, out, tile, n0, n1, n2, width, more, rank, scaling, x0, x1, x2, x3, f0, f1, f2, f3,
    CARRIES: tl.constexpr, UNIT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write x (N0, N1, N2, width) with `more` columns behind; the first `rank` of them are factors / scaling."""
    row = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = row < n0 * n1 * n2
    i2 = row % n2
    i1 = (row // n2) % n1
    i0 = row // n2 // n1
    # the new width is often 8 more than a multiple of 16: its divisor is said, or stores would go one by one
    wide = (width + more) // UNIT * UNIT
    start = (i0 * x0 + i1 * x1 + i2 * x2)[:, None]
    to = (row * wide)[:, None]
    for first in range(0, width, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        mask = live[:, None] & (column < width)[None, :]
        tl.store(out + to + column[None, :], tl.load(x + start + column[None, :] * x3, mask=mask, other=0.0), mask=mask)
    column = tl.arange(0, BLOCK_E)
    mask = live[:, None] & (column < more)[None, :]
    behind = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
    if CARRIES:
        at = (i0 * f0 + i1 * f1 + i2 * f2)[:, None] + column[None, :] * f3
        held = live[:, None] & (column < rank)[None, :]
        behind = tl.load(factors + at, mask=held, other=0.0).to(tl.float32) / scaling
    tl.store(out + to + width + column[None, :], behind.to(out.dtype.element_ty), mask=mask)


@triton.jit
def key_bias_kernel(
    query, key, value, a, b, new_query, new_key, new_value,
    n0, heads, kv_heads, length, total, width, value_width, more, rank, scaling, tiles, key_tiles,
    q0, q1, q2, q3, k0, k1, k2, k3, v0, v1, v2, v3, a0, a1, a2, a3, b0, b1, b2, b3,
    UNIT: tl.constexpr, VALUE_UNIT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    if tile < tiles:
        _widened(
            query, a, new_query, tile, n0, heads, length, width, more, rank, scaling,
            q0, q1, q2, q3, a0, a1, a2, a3, True, UNIT, BLOCK_R, BLOCK_D, BLOCK_E,
        )  # fmt: skip
    elif tile < tiles + key_tiles:
        _widened(
            key, b, new_key, tile - tiles, n0, kv_heads, total, width, more, rank, 1.0,
            k0, k1, k2, k3, b0, b1, b2, b3, True, UNIT, BLOCK_R, BLOCK_D, BLOCK_E,
        )  # fmt: skip
    else:
        _widened(
            value, value, new_value, tile - tiles - key_tiles, n0, kv_heads, total, value_width, more, 0, 1.0,
            v0, v1, v2, v3, 0, 0, 0, 0, False, VALUE_UNIT, BLOCK_R, BLOCK_V, BLOCK_E,
        )  # fmt: skip


def _settings(width: int, value_width: int, extra: int) -> dict[str, int]:
    """Tiles of about 4,096 numbers."""
    wide, value_wide = columns(width), columns(value_width)
    tall = max(8, min(64, 4096 // max(wide, value_wide)))
    units = {name: 8 if (n + extra) % 8 == 0 else 1 for name, n in (("UNIT", width), ("VALUE_UNIT", value_width))}
    blocks = {"BLOCK_R": tall, "BLOCK_D": wide, "BLOCK_V": value_wide, "BLOCK_E": block(extra)}
    return {**units, **blocks, "num_warps": 4}


@on_its_device
def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    extra: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One launch, or the reference where Triton does not apply."""
    if not runs(query, key, value, a, b):
        made = REFERENCE(query, key, value, a, b, scaling, extra)
        return tuple(x.contiguous() if extra else x.clone().contiguous() for x in made)  # type: ignore[return-value]
    check(query, key, value, a, b, scaling, extra)
    batch, heads, length, width = query.shape
    kv_heads, total, value_width = key.shape[1], key.shape[2], value.shape[3]
    made = tuple(
        torch.empty((*x.shape[:3], x.shape[3] + extra), dtype=x.dtype, device=x.device) for x in (query, key, value)
    )
    settings = _settings(width, value_width, extra)
    tiles = triton.cdiv(batch * heads * length, settings["BLOCK_R"])
    key_tiles = triton.cdiv(batch * kv_heads * total, settings["BLOCK_R"])
    if tiles + 2 * key_tiles:
        key_bias_kernel[(tiles + 2 * key_tiles,)](
            query, key, value, a, b, *made,
            batch, heads, kv_heads, length, total, width, value_width, extra, a.shape[3], float(scaling),
            tiles, key_tiles, *query.stride(), *key.stride(), *value.stride(),
            *a.expand(*query.shape[:3], a.shape[3]).stride(), *b.expand(*key.shape[:3], b.shape[3]).stride(),
            **settings,
        )  # fmt: skip
    return made  # type: ignore[return-value]


@torch.library.custom_op(
    "steer::key_bias",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor a, Tensor b, float scaling, int extra)"
    " -> (Tensor, Tensor, Tensor)",
)
def operator(query, key, value, a, b, scaling, extra):  # type: ignore[no-untyped-def]
    return launch(query, key, value, a, b, scaling, extra)


@operator.register_fake
def _(query, key, value, a, b, scaling, extra):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty((*x.shape[:3], x.shape[3] + extra)) for x in (query, key, value))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, _, value, a, b, ctx.scaling, _ = inputs
    ctx.widths = query.shape[3], value.shape[3]
    ctx.factors = [(x.shape, x.dtype) for x in (a, b)]


def _backward(ctx, *grads):  # type: ignore[no-untyped-def]
    width, value_width = ctx.widths
    found = [grads[0][..., :width], grads[1][..., :width], grads[2][..., :value_width]]
    for grad, (shape, dtype), by in zip(grads[:2], ctx.factors, (ctx.scaling, 1.0), strict=True):
        # rounded to the dtype of q or k on the way in; summed in fp32
        given = grad[..., width : width + shape[3]].to(torch.promote_types(dtype, torch.float32))
        found.append((given.sum_to_size(shape) / by).to(dtype))
    return *(f if wanted else None for f, wanted in zip(found, ctx.needs_input_grad[:5], strict=True)), None, None


operator.register_autograd(_backward, setup_context=_save)


def key_bias(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    extra: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`steer_kernels.key_bias`."""
    call = launch if direct(query, key, value, a, b) else operator
    return call(query, key, value, a, b, scaling, extra)  # type: ignore[no-any-return]
