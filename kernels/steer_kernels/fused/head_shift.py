"""K3 in Triton: the gate and the shift in one pass.

    y_h = o_h + m s g_h v_h ,   g_h = sigmoid(<f(q_h), w_h> + b_h - lse_h)

A program takes ROWS rows of one head: its w and v are loaded once, q and o read once, y written once. A head that is
not listed in `heads` reads no q and copies its o.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..head_shift import check
from ..head_shift import head_shift as public
from ._gate import each, four, given, heads_strides, normed, place, promised, room, rows_strides, sigmoid
from ._op import block, by_autograd, direct, like, on_its_device, runs
from .head_shift_backward import launch_backward

REFERENCE = public.reference  # type: ignore[attr-defined]


@triton.jit
def find_slot(heads, head, count, SLOTS: tl.constexpr):
    """Where `head` stands in heads (count,), and whether it does."""
    slots = tl.arange(0, SLOTS)
    same = tl.load(heads + slots, mask=slots < count, other=-1) == head
    return tl.sum(tl.where(same, slots, 0), 0), tl.sum(same.to(tl.int32), 0) > 0


@triton.jit(do_not_specialize=["count", "time"])
def head_shift_kernel(
    o, q, w, b, v, lse, rows, heads, y,
    scale, count, time, n_heads, n_moved, dim, dim_v,
    so_b, so_t, so_h, so_d, sq_b, sq_t, sq_h, sq_d, sw_h, sw_d, sb_h, sv_h, sv_d,
    sl_b, sl_t, sl_h, sm_b, sm_t, sy_b, sy_t, sy_h, sy_d,
    LAYER_NORM: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """One head's next ROWS rows; heads run fastest, so that neighbours in memory are read at the same time."""
    program = tl.program_id(0)
    head = program % n_heads
    row = program // n_heads * ROWS + tl.arange(0, ROWS)
    live = row < count
    far = head.to(tl.int64)
    columns = tl.arange(0, DIM)
    columns_v = tl.arange(0, DIM_V)

    kept_v = live[:, None] & (columns_v < dim_v)[None, :]
    at_o = place(row, live, time, so_b, so_t) + far * so_h
    x = tl.load(o + at_o[:, None] + columns_v[None, :] * so_d, mask=kept_v, other=0.0).to(tl.float32)

    slot = far
    moved = live
    if heads is not None:
        slot, listed = find_slot(heads, head, n_moved, SLOTS)
        moved = moved & listed
    if rows is not None:
        moved = moved & (tl.load(rows + place(row, live, time, sm_b, sm_t), mask=moved, other=0) != 0)

    kept = moved[:, None] & (columns < dim)[None, :]
    at_q = place(row, live, time, sq_b, sq_t) + far * sq_h
    f = tl.load(q + at_q[:, None] + columns[None, :] * sq_d, mask=kept, other=0.0).to(tl.float32)
    if LAYER_NORM:
        f, _rstd = normed(f, kept, dim)
    weight = tl.load(w + slot * sw_h + columns * sw_d, mask=columns < dim, other=0.0).to(tl.float32)
    z = tl.sum(f * weight[None, :], 1) + tl.load(b + slot * sb_h).to(tl.float32)
    if lse is not None:
        at_l = place(row, live, time, sl_b, sl_t) + far * sl_h
        z -= tl.load(lse + at_l, mask=moved, other=0.0).to(tl.float32)
    g, _slope = sigmoid(z)

    vector = tl.load(v + slot * sv_h + columns_v * sv_d, mask=columns_v < dim_v, other=0.0).to(tl.float32)
    x = tl.where(moved[:, None], x + (scale * g)[:, None] * vector[None, :], x)
    at_y = place(row, live, time, sy_b, sy_t) + far * sy_h
    tl.store(y + at_y[:, None] + columns_v[None, :] * sy_d, x.to(y.dtype.element_ty), mask=kept_v)


def _settings(count: int, dim: int, dim_v: int) -> dict[str, int]:
    """The tile and what works on it: 4096 numbers, less where there are fewer rows."""
    wide = max(dim, dim_v)
    rows = min(block(count), max(1, 4096 // wide), 64)
    return {"ROWS": rows, "DIM": dim, "DIM_V": dim_v, "num_warps": 4 if rows * wide >= 1024 else 1}


@on_its_device
def launch(
    o: torch.Tensor,
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    heads: torch.Tensor | None,
    scale: float,
    layer_norm: bool,
) -> torch.Tensor:
    """K3 by the kernel where it runs, else by the reference."""
    if not runs(o, q, w, b, v, lse):
        return like(o, REFERENCE(o, q, w, b, v, lse, rows, scale=scale, layer_norm=layer_norm, heads=heads))
    out = room(o)
    if not out.numel():
        return like(o, out)
    x, query, y = four(o), four(q), four(out)
    batch, time, count, dim_v = x.shape
    dim = query.shape[3]
    lse_at, *lse_by = heads_strides(None if lse is None else lse.unsqueeze(-1), q.shape)
    rows_at, *rows_by = rows_strides(rows, o.shape[:-2])
    moved = count if heads is None else heads.shape[0]
    if not moved:
        return like(o, out.copy_(o))
    settings = _settings(batch * time, block(dim), block(dim_v))
    head_shift_kernel[(count * triton.cdiv(batch * time, settings["ROWS"]),)](
        x, query, w, b, v, lse_at, rows_at, None if heads is None else heads.contiguous(), y,
        scale, batch * time, time, count, moved, dim, dim_v,
        *x.stride(), *query.stride(), *each(w, 2), *each(b, 1), *each(v, 2), *lse_by, *rows_by, *y.stride(),
        LAYER_NORM=layer_norm, SLOTS=block(moved), **settings,
    )  # fmt: skip
    return like(o, out)


SCHEMA = (
    "(Tensor o, Tensor q, Tensor w, Tensor b, Tensor v, Tensor? lse, Tensor? rows, Tensor? heads, "
    "float scale, bool layer_norm) -> Tensor"
)
operator = torch.library.custom_op("steer::head_shift", launch, mutates_args=(), schema=SCHEMA)


@operator.register_fake
def _(o: torch.Tensor, *_rest: Any) -> torch.Tensor:
    return torch.empty_like(o)


def _backward_launch(
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
) -> list[torch.Tensor]:
    """The gradients of q, w, b, v and lse; an empty tensor for one that is not wanted."""
    inputs = (q, w, b, v, lse)
    found = launch_backward(grad, *inputs, rows, heads, scale, layer_norm, wanted)
    return given(grad, inputs, found, wanted)


BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor q, Tensor w, Tensor b, Tensor v, Tensor? lse, Tensor? rows, Tensor? heads, "
    "float scale, bool layer_norm, bool[] wanted) -> Tensor[]"
)
backward_operator = torch.library.custom_op(
    "steer::head_shift_backward", _backward_launch, mutates_args=(), schema=BACKWARD_SCHEMA
)


@backward_operator.register_fake
def _(grad: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
    return promised(grad, rest[:5], rest[-1])


def _keep(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[1:8])
    ctx.options = inputs[8:]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients; y moves with o one to one, so o's is the output's own."""
    # Once: a checkpoint gives what was saved one time only.
    saved = ctx.saved_tensors
    inputs, (rows, heads) = saved[:5], saved[5:]
    scale, layer_norm = ctx.options
    wanted = list(ctx.needs_input_grad[1:6])
    found: list[torch.Tensor | None] = [None] * 5
    if runs(grad, *inputs) and any(wanted):
        found = backward_operator(grad, *inputs, rows, heads, scale, layer_norm, wanted)
    elif any(wanted):

        def shifted(*changing: Any) -> torch.Tensor:
            return REFERENCE(grad, *changing, rows, scale=scale, layer_norm=layer_norm, heads=heads)

        found = by_autograd(shifted, inputs, wanted, grad)
    of_rest = (d if want else None for d, want in zip(found, wanted, strict=True))
    return (grad if ctx.needs_input_grad[0] else None, *of_rest, None, None, None, None)


operator.register_autograd(_backward, setup_context=_keep)


def head_shift(
    o: torch.Tensor,
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    layer_norm: bool = False,
    heads: torch.Tensor | None = None,
) -> torch.Tensor:
    """`steer_kernels.head_shift` in Triton."""
    check(o, q, w, b, v, lse, rows, heads)
    if direct(o, q, w, b, v, lse):
        return launch(o, q, w, b, v, lse, rows, heads, scale, layer_norm)
    return operator(o, q, w, b, v, lse, rows, heads, scale, layer_norm)
