"""K1, K2 and the ICV factor in Triton: `steer_kernels.shift` in one read and one write of h.

    u = h + c v,   c = scale g l f;   y = m ? (keep_norm ? u ||h|| / max(||u||, eps) : u) : h

Every tensor is seen as (N0, N1, H, D), v and gate and rows with strides of 0 where they broadcast.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..shift import COSINE_EPS, EPS
from ..shift import shift as public
from ._op import block, direct, like, on_its_device, runs
from ._rows import four, narrow, spread, strides
from .shift_backward import gradients

REFERENCE = public.reference  # type: ignore[attr-defined]
# Numbers that the device adds faster than the host launches anything.
SMALL = 1 << 17
ARGUMENTS = "h, Tensor v, Tensor? gate, Tensor? rows, float scale, bool keep_norm, bool relative, bool cosine)"


@triton.jit
def shift_kernel(
    h, v, gate, rows, out,
    scale, n1, n2, total, width,
    h0, h1, h2, h3, v2, v3, g0, g1, g2, m0, m1, m2, o0, o1, o2, o3,
    HAS_GATE: tl.constexpr, HAS_ROWS: tl.constexpr, PER_HEAD: tl.constexpr,
    KEEP_NORM: tl.constexpr, RELATIVE: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr, COSINE_EPS: tl.constexpr,
    LOOP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    inside = column < width
    shared = tl.load(v + column * v3, mask=inside, other=0.0).to(tl.float32)[None, :]
    for turn in range(LOOP):
        row = (tl.program_id(0) * LOOP + turn) * BLOCK_R + tl.arange(0, BLOCK_R)
        live = row < total
        i2 = (row % n2).to(tl.int64)
        i1 = ((row // n2) % n1).to(tl.int64)
        i0 = (row // (n2 * n1)).to(tl.int64)
        mask = live[:, None] & inside[None, :]
        at = (i0 * h0 + i1 * h1 + i2 * h2)[:, None] + column[None, :] * h3
        x = tl.load(h + at, mask=mask, other=0.0).to(tl.float32)
        if PER_HEAD:
            step = tl.load(v + (i2 * v2)[:, None] + column[None, :] * v3, mask=mask, other=0.0).to(tl.float32)
        else:
            step = shared
        strength = tl.full((BLOCK_R,), 1.0, tl.float32) * scale
        if HAS_GATE:
            strength *= tl.load(gate + i0 * g0 + i1 * g1 + i2 * g2, mask=live, other=0.0).to(tl.float32)
        if KEEP_NORM or RELATIVE or COSINE:
            length = tl.sqrt(tl.sum(x * x, 1))
        if RELATIVE:
            strength *= length
        if COSINE:
            dot = tl.sum(x * step, 1)
            size = tl.sqrt(tl.sum(step * step, 1))
            cosine = dot / (tl.maximum(length, COSINE_EPS) * tl.maximum(size, COSINE_EPS))
            strength *= 1 + tl.where(cosine > 0, 0.0, -cosine)
        y = x + strength[:, None] * step
        if KEEP_NORM:
            y = y * (length / tl.maximum(tl.sqrt(tl.sum(y * y, 1)), EPS))[:, None]
        if HAS_ROWS:
            moves = tl.load(rows + i0 * m0 + i1 * m1 + i2 * m2, mask=live, other=0) != 0
            y = tl.where(moves[:, None], y, x)
        to = (i0 * o0 + i1 * o1 + i2 * o2)[:, None] + column[None, :] * o3
        tl.store(out + to, y.to(out.dtype.element_ty), mask=mask)


def _settings(total: int, width: int) -> dict[str, int]:
    """Tiles of about 8,192 numbers; v stays in registers over several of them where there are many rows."""
    wide = block(width)
    tall = max(1, min(block(total), 4096 // wide))
    loop = 1 if total < 4096 * tall else 4
    return {"LOOP": loop, "BLOCK_R": tall, "BLOCK_D": wide, "num_warps": 4 if tall * wide <= 4096 else 8}


@on_its_device
def launch(
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor | None,
    rows: torch.Tensor | None,
    scale: float,
    keep_norm: bool,
    relative: bool,
    cosine: bool,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """One launch, or the reference where Triton or this kernel does not apply."""
    seen = four(h, v) if runs(h, v, gate) else None
    if seen is None:
        y = REFERENCE(h, v, gate, rows, scale=scale, keep_norm=keep_norm, relative=relative, cosine=cosine)
        return like(h, y) if into is None else into.copy_(y)
    x, vector, heads = seen
    out = torch.empty_like(h) if into is None else into
    if not out.numel():
        return out
    y = out.view(x.shape) if out.is_contiguous() else four(out, v)[0]  # type: ignore[index]
    strength = spread(narrow(gate), h, heads, x.shape)
    chosen = spread(rows, h, heads, x.shape)
    n0, n1, n2, width = x.shape
    settings = _settings(n0 * n1 * n2, width)
    grid = (triton.cdiv(n0 * n1 * n2, settings["BLOCK_R"] * settings["LOOP"]),)
    shift_kernel[grid](
        x, vector, strength, chosen if chosen is None else chosen.view(torch.uint8), y,
        scale, n1, n2, n0 * n1 * n2, width,
        *x.stride(), *vector.stride(), *strides(strength), *strides(chosen), *y.stride(),
        HAS_GATE=strength is not None, HAS_ROWS=chosen is not None, PER_HEAD=vector.shape[0] > 1,
        KEEP_NORM=keep_norm, RELATIVE=relative, COSINE=cosine, EPS=EPS, COSINE_EPS=COSINE_EPS, **settings,
    )  # fmt: skip
    return out


@torch.library.custom_op("steer::shift", mutates_args=(), schema=f"(Tensor {ARGUMENTS} -> Tensor")
def operator(h, v, gate, rows, scale, keep_norm, relative, cosine):  # type: ignore[no-untyped-def]
    return launch(h, v, gate, rows, scale, keep_norm, relative, cosine)


@operator.register_fake
def _(h, v, gate, rows, scale, keep_norm, relative, cosine):  # type: ignore[no-untyped-def]
    return torch.empty_like(h)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:4])
    ctx.how = inputs[4:]


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    dh, dv, dgate = gradients(grad, *ctx.saved_tensors, *ctx.how, list(ctx.needs_input_grad[:3]))
    return dh, dv, dgate, None, None, None, None, None


operator.register_autograd(_backward, setup_context=_save)


def shift(
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    keep_norm: bool = False,
    relative: bool = False,
    cosine: bool = False,
) -> torch.Tensor:
    """`steer_kernels.shift`."""
    if not direct(h, v, gate):
        return operator(h, v, gate, rows, scale, keep_norm, relative, cosine)
    if _faster_in_torch(h) and gate is None and rows is None and not (keep_norm or relative or cosine):
        return REFERENCE(h, v, scale=scale)
    return launch(h, v, gate, rows, scale, keep_norm, relative, cosine)


def _faster_in_torch(h: torch.Tensor) -> bool:
    """Whether torch's two launches for a plain addition take the host less than Triton's one: at a decoded token.

    On a host that takes 30 us for the two, Triton's one takes 90. In a captured graph it is the other way round.
    """
    return h.is_cuda and h.numel() <= SMALL and not torch.cuda.is_current_stream_capturing()


@torch.library.custom_op(
    "steer::shift_",
    mutates_args=("h",),
    schema=f"(Tensor(a!) {ARGUMENTS} -> ()",
)
def operator_(h, v, gate, rows, scale, keep_norm, relative, cosine):  # type: ignore[no-untyped-def]
    launch(h, v, gate, rows, scale, keep_norm, relative, cosine, into=h)


def shift_(
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    keep_norm: bool = False,
    relative: bool = False,
    cosine: bool = False,
) -> torch.Tensor:
    """`steer_kernels.shift_`."""
    if direct(h, v, gate):
        return launch(h, v, gate, rows, scale, keep_norm, relative, cosine, into=h)
    operator_(h, v, gate, rows, scale, keep_norm, relative, cosine)
    return h
