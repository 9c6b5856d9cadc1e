"""K4 in Triton: rotation, gate and low-rank change of the query in one pass.

    y = x + m g sqrt(d / r) (x U_q) U_k^T ,   g = sigmoid(<f(x), w> + b - lse) ,   x = q or RoPE(q)

A program takes one head and a run of rows, a tile at a time: its U_q and U_k are loaded once, q is read once, y written
once. The rank is padded to 16, which is what tensor cores take. Queries in bf16 are multiplied as they are, with U_q in
two parts that together have its precision; fp16 and rotated ones in tf32, fp32 ones in tf32 three times over (tf32x3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ..query_shift import RANK, check
from ..query_shift import query_shift as public
from ._gate import each, four, given, heads_strides, normed, place, promised, room, rows_strides, sigmoid
from ._op import INTERPRETED, block, by_autograd, direct, like, on_its_device, programs, runs
from ._rotary import angle_strides, load_query
from .query_shift_backward import launch_backward

REFERENCE = public.reference  # type: ignore[attr-defined]
# Tiles of wider heads do not fit beside U_q and U_k.
WIDEST = 256
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit(do_not_specialize=["count", "time", "run"])
def query_shift_kernel(
    q, u_q, u_k, w, b, gate, lse, rows, cos, sin, y,
    factor, count, time, run, n_heads, dim, rank, turned,
    sq_b, sq_t, sq_h, sq_d, su_h, su_d, su_r, sk_h, sk_d, sk_r, sw_h, sw_d, sb_h, sg_b, sg_t, sg_h,
    sl_b, sl_t, sl_h, sm_b, sm_t, sc_b, sc_t, sc_d, ss_b, ss_t, ss_d, sy_b, sy_t, sy_h, sy_d,
    LAYER_NORM: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    RANK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One head's next `run` rows; heads run fastest, so that neighbours in memory are read at the same time."""
    program = tl.program_id(0)
    head = program % n_heads
    part = program // n_heads
    far = head.to(tl.int64)
    columns = tl.arange(0, DIM)
    places = tl.arange(0, RANK)
    ranks = places % (RANK // 2) if SPLIT else places
    down = tl.load(
        u_q + far * su_h + columns[:, None] * su_d + ranks[None, :] * su_r,
        mask=(columns < dim)[:, None] & (ranks < rank)[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    up = tl.load(
        u_k + far * sk_h + columns[None, :] * sk_d + ranks[:, None] * sk_r,
        mask=(columns < dim)[None, :] & (ranks < rank)[:, None], other=0.0,
    ).to(tl.float32)  # fmt: skip
    if SPLIT:
        # U_q rounded, and beside it what that lost: both products stand side by side, and U_k, twice, adds them.
        rounded = down.to(q.dtype.element_ty)
        rest = down - rounded.to(tl.float32)
        down = tl.where((places < RANK // 2)[None, :], rounded.to(tl.float32), rest).to(q.dtype.element_ty)
        if _INTERPRETED:  # which multiplies the bits of bf16
            down = down.to(tl.float32)

    # once for all tiles, like U_q and U_k
    if w is not None:
        weight = tl.load(w + far * sw_h + columns * sw_d, mask=columns < dim, other=0.0).to(tl.float32)
        if b is not None:
            bias = tl.load(b + far * sb_h).to(tl.float32)
    last = tl.minimum(part * run + run, count)
    for start in tl.range(part * run, last, ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        live = row < last
        moved = live
        if rows is not None:
            moved = moved & (tl.load(rows + place(row, live, time, sm_b, sm_t), mask=live, other=0) != 0)
        kept = live[:, None] & (columns < dim)[None, :]
        at_q = place(row, live, time, sq_b, sq_t) + far * sq_h
        at_c = place(row, live, time, sc_b, sc_t)
        at_s = place(row, live, time, ss_b, ss_t)
        if SPLIT:
            raw = tl.load(q + at_q[:, None] + columns[None, :] * sq_d, mask=kept, other=0.0)
            x = raw.to(tl.float32)
            if _INTERPRETED:
                raw = x
        else:
            x = load_query(q, cos, sin, at_q, at_c, at_s, columns, sq_d, sc_d, ss_d, kept, turned)
            raw = x
        strength = tl.full((ROWS,), 1.0, tl.float32) * factor
        if w is not None:
            f = x
            if LAYER_NORM:
                f, _rstd = normed(x, kept, dim)
            z = tl.sum(f * weight[None, :], 1)
            if b is not None:
                z += bias
            if lse is not None:
                at_l = place(row, live, time, sl_b, sl_t) + far * sl_h
                z -= tl.load(lse + at_l, mask=moved, other=0.0).to(tl.float32)
            g, _slope = sigmoid(z)
            strength *= g
        if gate is not None:
            at_g = place(row, live, time, sg_b, sg_t) + far * sg_h
            strength *= tl.load(gate + at_g, mask=moved, other=0.0).to(tl.float32)
        low = tl.dot(raw, down, input_precision=PRECISION) * strength[:, None]
        step = tl.dot(low, up, input_precision=PRECISION)
        x = tl.where(moved[:, None], x + step, x)
        at_y = place(row, live, time, sy_b, sy_t) + far * sy_h
        tl.store(y + at_y[:, None] + columns[None, :] * sy_d, x.to(y.dtype.element_ty), mask=kept)


def _settings(count: int, dim: int, rank: int, split: bool, wide: bool) -> dict[str, Any]:
    """The tile, 16 rows at least for `tl.dot`, and what works on it, as they were fastest on an H100."""
    rows, warps, stages = (64, 4, 3) if split and dim <= 128 else (16, 4 if split else 2, 1)
    return {
        "SPLIT": split,
        "PRECISION": "tf32x3" if wide else "tf32",
        "ROWS": max(16, min(block(count), rows)),
        "DIM": dim,
        "RANK": 2 * block(rank, 8) if split else RANK,
        "STAGES": stages,
        "num_warps": warps,
        "num_stages": stages,
    }


@on_its_device
def launch(
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    w: torch.Tensor | None,
    b: torch.Tensor | None,
    gate: torch.Tensor | None,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    layer_norm: bool,
) -> torch.Tensor:
    """K4 by the kernel where it runs, else by the reference."""
    if q.shape[-1] > WIDEST or not runs(q, u_q, u_k, w, b, gate, lse, cos, sin):
        return like(q, REFERENCE(q, u_q, u_k, w, b, gate, lse, rows, layer_norm=layer_norm, cos=cos, sin=sin))
    out = room(q)
    if not out.numel():
        return like(q, out)
    x, y = four(q), four(out)
    batch, time, n_heads, dim = x.shape
    count, rank = batch * time, u_q.shape[2]
    gate_at, *gate_by = heads_strides(gate, q.shape)
    lse_at, *lse_by = heads_strides(None if lse is None else lse.unsqueeze(-1), q.shape)
    rows_at, *rows_by = rows_strides(rows, q.shape[:-2])
    cos_at, *cos_by = angle_strides(cos, q.shape)
    sin_at, *sin_by = angle_strides(sin, q.shape)
    split = q.dtype == torch.bfloat16 and cos is None
    settings = _settings(count, block(dim, 16), rank, split, q.dtype == torch.float32)
    each_rows = settings["ROWS"]
    parts = min(triton.cdiv(count, each_rows), max(1, programs(q.device, 8) // n_heads))
    run = triton.cdiv(triton.cdiv(count, parts), each_rows) * each_rows
    query_shift_kernel[(n_heads * triton.cdiv(count, run),)](
        x, u_q, u_k, w, b, gate_at, lse_at, rows_at, cos_at, sin_at, y,
        math.sqrt(dim / rank), count, time, run, n_heads, dim, rank, 0 if cos is None else cos.shape[-1],
        *x.stride(), *each(u_q, 3), *each(u_k, 3), *each(w, 2), *each(b, 1), *gate_by, *lse_by, *rows_by,
        *cos_by, *sin_by, *y.stride(),
        LAYER_NORM=layer_norm, **settings,
    )  # fmt: skip
    return like(q, out)


SCHEMA = (
    "(Tensor q, Tensor u_q, Tensor u_k, Tensor? w, Tensor? b, Tensor? gate, Tensor? lse, Tensor? rows, "
    "Tensor? cos, Tensor? sin, bool layer_norm) -> Tensor"
)
operator = torch.library.custom_op("steer::query_shift", launch, mutates_args=(), schema=SCHEMA)


@operator.register_fake
def _(q: torch.Tensor, *_rest: Any) -> torch.Tensor:
    return torch.empty_like(q)


def _backward_launch(
    grad: torch.Tensor,
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    w: torch.Tensor | None,
    b: torch.Tensor | None,
    gate: torch.Tensor | None,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    layer_norm: bool,
    wanted: list[bool],
) -> list[torch.Tensor]:
    """The gradients of q, u_q, u_k, w, b, gate and lse; an empty tensor for one that is not wanted."""
    inputs = (q, u_q, u_k, w, b, gate, lse)
    found = launch_backward(grad, *inputs, rows, cos, sin, layer_norm, wanted)
    return given(grad, inputs, found, wanted)


BACKWARD_SCHEMA = f"(Tensor grad, {SCHEMA[1 : SCHEMA.index(')')]}, bool[] wanted) -> Tensor[]"
backward_operator = torch.library.custom_op(
    "steer::query_shift_backward", _backward_launch, mutates_args=(), schema=BACKWARD_SCHEMA
)


@backward_operator.register_fake
def _(grad: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
    return promised(grad, rest[:7], rest[-1])


def _keep(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:10])
    ctx.layer_norm = inputs[10]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # Once: a checkpoint gives what was saved one time only.
    saved = ctx.saved_tensors
    inputs, (rows, cos, sin) = saved[:7], saved[7:]
    q = inputs[0]
    wanted = list(ctx.needs_input_grad[:7])
    if q.shape[-1] <= WIDEST and runs(grad, *inputs, cos, sin):
        found = backward_operator(grad, *inputs, rows, cos, sin, ctx.layer_norm, wanted)
    else:

        def shifted(*changing: Any) -> torch.Tensor:
            return REFERENCE(*changing, rows, layer_norm=ctx.layer_norm, cos=cos, sin=sin)

        found = by_autograd(shifted, inputs, wanted, grad)
    return (*(d if want else None for d, want in zip(found, wanted, strict=True)), None, None, None, None)


operator.register_autograd(_backward, setup_context=_keep)


def query_shift(
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    w: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    *,
    layer_norm: bool = False,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
) -> torch.Tensor:
    """`steer_kernels.query_shift` in Triton."""
    check(q, u_q, u_k, w, b, gate, lse, rows, cos, sin)
    if direct(q, u_q, u_k, w, b, gate, lse):
        return launch(q, u_q, u_k, w, b, gate, lse, rows, cos, sin, layer_norm)
    return operator(q, u_q, u_k, w, b, gate, lse, rows, cos, sin, layer_norm)
