"""The backward of K3 in Triton, one kernel.

    dz = m s g (1 - g) <G, v> ,   dv = sum m s g G ,   dw = sum dz f(q) ,   db = sum dz ,   dlse = -dz ,   do = G

G is the gradient of y; dq is dz w, through the LayerNorm where there is one. A program takes one head and a run of
rows, adds up dw, dv and db in registers and writes them once; torch sums over the runs, so that the order is always
the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._gate import each, four, gate_to_x, heads_strides, normed, place, room, rows_strides, sigmoid, summed
from ._op import block, on_its_device, programs


@triton.jit(do_not_specialize=["count", "time", "run"])
def head_shift_backward_kernel(
    grad, q, w, b, v, lse, rows, slots, dq, dlse, dw, db, dv,
    scale, count, time, run, n_heads, n_moved, dim, dim_v,
    sg_b, sg_t, sg_h, sg_d, sq_b, sq_t, sq_h, sq_d, sw_h, sw_d, sb_h, sv_h, sv_d,
    sl_b, sl_t, sl_h, sm_b, sm_t, sdq_b, sdq_t, sdq_h, sdq_d, sdl_b, sdl_t, sdl_h,
    LAYER_NORM: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
):  # fmt: skip
    """One head's next `run` rows; dw, db and dv are partial sums (runs, n_moved, ...), any of the outputs None."""
    program = tl.program_id(0)
    head = program % n_heads
    part = program // n_heads
    far = head.to(tl.int64)
    columns = tl.arange(0, DIM)
    columns_v = tl.arange(0, DIM_V)
    slot = far
    if slots is not None:
        slot = tl.load(slots + head)
    listed = slot >= 0
    weight = tl.load(w + slot * sw_h + columns * sw_d, mask=(columns < dim) & listed, other=0.0).to(tl.float32)
    vector = tl.load(v + slot * sv_h + columns_v * sv_d, mask=(columns_v < dim_v) & listed, other=0.0).to(tl.float32)
    bias = tl.load(b + slot * sb_h, mask=listed, other=0.0).to(tl.float32)
    sum_w = tl.zeros((ROWS, DIM), tl.float32)
    sum_v = tl.zeros((ROWS, DIM_V), tl.float32)
    sum_b = tl.zeros((ROWS,), tl.float32)

    last = tl.minimum(part * run + run, count)
    for start in tl.range(part * run, last, ROWS, num_stages=2):
        row = start + tl.arange(0, ROWS)
        live = row < last
        moved = live & listed
        if rows is not None:
            moved = moved & (tl.load(rows + place(row, live, time, sm_b, sm_t), mask=moved, other=0) != 0)
        kept = moved[:, None] & (columns < dim)[None, :]
        kept_v = moved[:, None] & (columns_v < dim_v)[None, :]
        at_q = place(row, live, time, sq_b, sq_t) + far * sq_h
        f = tl.load(q + at_q[:, None] + columns[None, :] * sq_d, mask=kept, other=0.0).to(tl.float32)
        at_g = place(row, live, time, sg_b, sg_t) + far * sg_h
        above = tl.load(grad + at_g[:, None] + columns_v[None, :] * sg_d, mask=kept_v, other=0.0).to(tl.float32)
        above = above * scale
        rstd = tl.zeros((ROWS,), tl.float32)
        if LAYER_NORM:
            f, rstd = normed(f, kept, dim)
        dot = tl.sum(f * weight[None, :], 1)
        z = dot + bias
        if lse is not None:
            at_l = place(row, live, time, sl_b, sl_t) + far * sl_h
            z -= tl.load(lse + at_l, mask=moved, other=0.0).to(tl.float32)
        g, slope = sigmoid(z)
        dz = tl.where(moved, slope * tl.sum(above * vector[None, :], 1), 0.0)
        if dv is not None:
            sum_v += g[:, None] * above
        if dw is not None:
            sum_w += dz[:, None] * f
        if db is not None:
            sum_b += dz
        if dlse is not None:
            at = place(row, live, time, sdl_b, sdl_t) + far * sdl_h
            tl.store(dlse + at, (-dz).to(dlse.dtype.element_ty), mask=live)
        if dq is not None:
            dx = gate_to_x(f, rstd, weight, dot, dz, kept, dim, LAYER_NORM)
            at = place(row, live, time, sdq_b, sdq_t) + far * sdq_h
            at = at[:, None] + columns[None, :] * sdq_d
            tl.store(dq + at, dx.to(dq.dtype.element_ty), mask=live[:, None] & (columns < dim)[None, :])

    sums = part.to(tl.int64) * n_moved + slot
    if dw is not None:
        tl.store(dw + sums * dim + columns, tl.sum(sum_w, 0), mask=(columns < dim) & listed)
    if dv is not None:
        tl.store(dv + sums * dim_v + columns_v, tl.sum(sum_v, 0), mask=(columns_v < dim_v) & listed)
    if db is not None:
        tl.store(db + sums, tl.sum(sum_b, 0), mask=listed)


def _settings(count: int, dim: int, dim_v: int) -> dict[str, int]:
    """The tile and what works on it: two tiles and two sums of 2048 numbers are in registers at a time."""
    wide = max(dim, dim_v)
    rows = min(block(count), max(1, 2048 // wide), 64)
    return {"ROWS": rows, "DIM": dim, "DIM_V": dim_v, "num_warps": 4 if rows * wide >= 1024 else 1}


@on_its_device
def launch_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    heads: torch.Tensor | None,
    scale: float,
    layer_norm: bool,
    wanted: list[bool],
) -> list[torch.Tensor | None]:
    """The gradients of q, w, b, v and lse, None for one that is not wanted."""
    above, query = four(grad), four(q)
    batch, time, n_heads, dim_v = above.shape
    count, dim = batch * time, query.shape[3]
    n_moved = n_heads if heads is None else heads.shape[0]
    if not count or not n_moved or not n_heads:
        return [None] * 5
    slots = None
    if heads is not None:
        slots = torch.full((n_heads,), -1, dtype=torch.int64, device=grad.device)
        slots.scatter_(0, heads, torch.arange(n_moved, device=grad.device))
    settings = _settings(count, block(dim), block(dim_v))
    each_rows = settings["ROWS"]
    parts = min(triton.cdiv(count, each_rows), max(1, programs(grad.device, 12) // n_heads))
    run = triton.cdiv(triton.cdiv(count, parts), each_rows) * each_rows
    parts = triton.cdiv(count, run)

    def sums(want: bool, *last: int) -> torch.Tensor | None:
        return torch.empty((parts, n_moved, *last), dtype=torch.float32, device=grad.device) if want else None

    dq = room(q) if wanted[0] else None
    dlse = room(lse) if wanted[4] and lse is not None else None
    dw, db, dv = sums(wanted[1], dim), sums(wanted[2]), sums(wanted[3], dim_v)
    lse_at, *lse_by = heads_strides(None if lse is None else lse.unsqueeze(-1), q.shape)
    dlse_at, *dlse_by = heads_strides(None if dlse is None else dlse.unsqueeze(-1), q.shape)
    rows_at, *rows_by = rows_strides(rows, grad.shape[:-2])
    dq_at = None if dq is None else four(dq)
    head_shift_backward_kernel[(n_heads * parts,)](
        above, query, w, b, v, lse_at, rows_at, slots, dq_at, dlse_at, dw, db, dv,
        scale, count, time, run, n_heads, n_moved, dim, dim_v,
        *above.stride(), *query.stride(), *each(w, 2), *each(b, 1), *each(v, 2), *lse_by, *rows_by,
        *((0,) * 4 if dq_at is None else dq_at.stride()), *dlse_by,
        LAYER_NORM=layer_norm, **settings,
    )  # fmt: skip
    return [dq, summed(dw, w), summed(db, b), summed(dv, v), dlse]
