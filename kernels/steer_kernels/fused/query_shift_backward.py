"""The backward of K4 in Triton, one kernel.

With c = sqrt(d / r), G the gradient of y, low = x U_q and t = c m g G U_k:

    dU_q = sum x^T t ,   dU_k = sum G^T (c m g low) ,   dx = G + t U_q^T + (through the gate) ,   dg = c m <G U_k, low>

A program takes one head and a run of rows and adds up dU_q, dU_k, dw and db in registers; torch sums over the runs, so
the order is always the same. Where the query was rotated, dx is turned back in registers.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .._dtypes import HALF
from ..query_shift import RANK
from ._gate import each, four, gate_to_x, heads_strides, normed, place, room, rows_strides, sigmoid, summed
from ._op import block, on_its_device, programs
from ._rotary import angle_strides, load_query, turned_back


def precision(q: torch.Tensor) -> str:
    """How products with the query are made: tf32 holds half types exactly, and three times over makes up fp32."""
    return "tf32" if q.dtype in HALF else "tf32x3"


@triton.jit(do_not_specialize=["count", "time", "run"])
def query_shift_backward_kernel(
    grad, q, u_q, u_k, w, b, gate, lse, rows, cos, sin, dx, du_q, du_k, dw, db, dgate,
    factor, count, time, run, n_heads, dim, rank, turned,
    so_b, so_t, so_h, so_d, sq_b, sq_t, sq_h, sq_d, su_h, su_d, su_r, sk_h, sk_d, sk_r, sw_h, sw_d, sb_h,
    sg_b, sg_t, sg_h, sl_b, sl_t, sl_h, sm_b, sm_t, sc_b, sc_t, sc_d, ss_b, ss_t, ss_d, sx_b, sx_t, sx_h, sx_d,
    LAYER_NORM: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """One head's next `run` rows; du_q, du_k, dw and db are partial sums (runs, H, ...), any of the outputs None.

    dgate (B, T, H), contiguous, is the gradient of the gate, or with w that of its score, which is minus lse's.
    """
    program = tl.program_id(0)
    head = program % n_heads
    part = program // n_heads
    far = head.to(tl.int64)
    columns = tl.arange(0, DIM)
    ranks = tl.arange(0, RANK)
    inside = (columns < dim)[:, None] & (ranks < rank)[None, :]
    at_u = u_q + far * su_h + columns[:, None] * su_d + ranks[None, :] * su_r
    down = tl.load(at_u, mask=inside, other=0.0).to(tl.float32)
    at_u = u_k + far * sk_h + columns[:, None] * sk_d + ranks[None, :] * sk_r
    up = tl.load(at_u, mask=inside, other=0.0).to(tl.float32)
    sum_q = tl.zeros((DIM, RANK), tl.float32)
    sum_k = tl.zeros((DIM, RANK), tl.float32)
    sum_w = tl.zeros((DIM,), tl.float32)
    sum_b = tl.zeros((ROWS,), tl.float32)

    if w is not None:
        weight = tl.load(w + far * sw_h + columns * sw_d, mask=columns < dim, other=0.0).to(tl.float32)
        if b is not None:
            bias = tl.load(b + far * sb_h).to(tl.float32)
    last = tl.minimum(part * run + run, count)
    for start in tl.range(part * run, last, ROWS, num_stages=2):
        row = start + tl.arange(0, ROWS)
        live = row < last
        moved = live
        if rows is not None:
            moved = moved & (tl.load(rows + place(row, live, time, sm_b, sm_t), mask=live, other=0) != 0)
        kept = moved[:, None] & (columns < dim)[None, :]
        at_q = place(row, live, time, sq_b, sq_t) + far * sq_h
        at_c = place(row, live, time, sc_b, sc_t)
        at_s = place(row, live, time, ss_b, ss_t)
        x = load_query(q, cos, sin, at_q, at_c, at_s, columns, sq_d, sc_d, ss_d, kept, turned)
        whole = live[:, None] & (columns < dim)[None, :]
        at_o = place(row, live, time, so_b, so_t) + far * so_h
        above = tl.load(grad + at_o[:, None] + columns[None, :] * so_d, mask=whole, other=0.0).to(tl.float32)
        moves = tl.where(moved[:, None], above, 0.0)

        low = tl.dot(x, down, input_precision=PRECISION)
        back = tl.dot(moves, up, input_precision=PRECISION) * factor
        dg = tl.sum(low * back, 1)
        g = tl.full((ROWS,), 1.0, tl.float32)
        if w is not None:
            f = x
            rstd = g
            if LAYER_NORM:
                f, rstd = normed(x, kept, dim)
            dot = tl.sum(f * weight[None, :], 1)
            z = dot
            if b is not None:
                z += bias
            if lse is not None:
                at_l = place(row, live, time, sl_b, sl_t) + far * sl_h
                z -= tl.load(lse + at_l, mask=moved, other=0.0).to(tl.float32)
            g, slope = sigmoid(z)
            dg = dg * slope
            if dw is not None:
                sum_w += tl.sum(dg[:, None] * f, 0)
            if db is not None:
                sum_b += dg
        if gate is not None:
            at_g = place(row, live, time, sg_b, sg_t) + far * sg_h
            g = tl.load(gate + at_g, mask=moved, other=0.0).to(tl.float32)
        if dgate is not None:
            tl.store(dgate + row.to(tl.int64) * n_heads + head, dg, mask=live)
        back = back * g[:, None]
        if dx is not None:
            above += tl.dot(back, tl.trans(down), input_precision=PRECISION)
            if w is not None:
                above += gate_to_x(f, rstd, weight, dot, dg, kept, dim, LAYER_NORM)
            if cos is not None:
                above = turned_back(above, cos, sin, at_c, at_s, columns, sc_d, ss_d, whole, turned)
            at_x = place(row, live, time, sx_b, sx_t) + far * sx_h
            tl.store(dx + at_x[:, None] + columns[None, :] * sx_d, above.to(dx.dtype.element_ty), mask=whole)
        if du_q is not None:
            sum_q = tl.dot(tl.trans(x), back, sum_q, input_precision=PRECISION)
        if du_k is not None:
            sum_k = tl.dot(tl.trans(moves), low * (g * factor)[:, None], sum_k, input_precision=PRECISION)

    sums = part.to(tl.int64) * n_heads + head
    at_u = sums * dim * rank + columns[:, None] * rank + ranks[None, :]
    if du_q is not None:
        tl.store(du_q + at_u, sum_q, mask=inside)
    if du_k is not None:
        tl.store(du_k + at_u, sum_k, mask=inside)
    if dw is not None:
        tl.store(dw + sums * dim + columns, sum_w, mask=columns < dim)
    if db is not None:
        tl.store(db + sums, tl.sum(sum_b, 0))


def _settings(dim: int) -> dict[str, int]:
    """The tile and what works on it: small tiles, since the sums (DIM, RANK) stay in registers beside them."""
    return {"ROWS": 16, "DIM": dim, "RANK": RANK, "num_warps": 4 if dim < 128 else 8, "num_stages": 1}


@on_its_device
def launch_backward(
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
) -> list[torch.Tensor | None]:
    """The gradients of q, u_q, u_k, w, b, gate and lse, None for one that is not wanted."""
    above, x = four(grad), four(q)
    batch, time, n_heads, dim = x.shape
    count, rank = batch * time, u_q.shape[2]
    if not x.numel():
        return [None] * 7
    settings = _settings(block(dim, 16))
    each_rows = settings["ROWS"]
    parts = min(triton.cdiv(count, each_rows), max(1, programs(grad.device, 8) // n_heads))
    run = triton.cdiv(triton.cdiv(count, parts), each_rows) * each_rows
    parts = triton.cdiv(count, run)

    def sums(want: bool, *last: int) -> torch.Tensor | None:
        return torch.empty((parts, n_heads, *last), dtype=torch.float32, device=grad.device) if want else None

    dx = room(q) if wanted[0] else None
    du_q, du_k = sums(wanted[1], dim, rank), sums(wanted[2], dim, rank)
    dw, db = sums(wanted[3], dim), sums(wanted[4])
    of_gate = wanted[5] or wanted[6]
    dgate = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device) if of_gate else None
    gate_at, *gate_by = heads_strides(gate, q.shape)
    lse_at, *lse_by = heads_strides(None if lse is None else lse.unsqueeze(-1), q.shape)
    rows_at, *rows_by = rows_strides(rows, q.shape[:-2])
    cos_at, *cos_by = angle_strides(cos, q.shape)
    sin_at, *sin_by = angle_strides(sin, q.shape)
    dx_at = None if dx is None else four(dx)
    query_shift_backward_kernel[(n_heads * parts,)](
        above, x, u_q, u_k, w, b, gate_at, lse_at, rows_at, cos_at, sin_at, dx_at, du_q, du_k, dw, db, dgate,
        math.sqrt(dim / rank), count, time, run, n_heads, dim, rank, 0 if cos is None else cos.shape[-1],
        *above.stride(), *x.stride(), *each(u_q, 3), *each(u_k, 3), *each(w, 2), *each(b, 1),
        *gate_by, *lse_by, *rows_by, *cos_by, *sin_by, *((0,) * 4 if dx_at is None else dx_at.stride()),
        LAYER_NORM=layer_norm, PRECISION=precision(q), **settings,
    )  # fmt: skip
    of_lse = None
    if dgate is not None and lse is not None:
        dgate, of_lse = None, -dgate
    if dgate is not None and gate is not None:
        dgate = dgate.unsqueeze(-1).sum_to_size(gate.shape).to(gate.dtype)
    return [dx, summed(du_q, u_q), summed(du_k, u_k), summed(dw, w), summed(db, b), dgate, of_lse]
