"""The gradients of `shift`: h and G read once, the gradient of h written once, sums for v in registers.

With u = h + c v, n = max(||u||, eps), L = ||h||, s = ||v|| and G the gradient of y:

    dL/du = G                                   or, keeping norms, (L / n) (G - (G.u) u / n^2)
    dL/dc = dL/du . v        dL/dv = c dL/du    dL/dh = dL/du
    keeping norms  dL/dL += (G.u) / n           relative  dL/dL += dL/dc c / L
    cosine < 0     dL/dcos = -dL/dc scale g l ;  dcos/dh = v / (L s) - cos h / L^2, dcos/dv = h / (L s) - cos v / s^2
    dL/dh += dL/dL h / L
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..shift import COSINE_EPS, EPS
from ..shift import shift as public
from ._op import block, by_autograd, on_its_device, programs, runs
from ._rows import four, narrow, spread, strides

REFERENCE = public.reference  # type: ignore[attr-defined]


@triton.jit
def shift_backward_kernel(
    grad, h, v, gate, rows, dh, dv, dgate,
    scale, n1, n2, count, width, chunk,
    y0, y1, y2, y3, h0, h1, h2, h3, v2, v3, g0, g1, g2, m0, m1, m2, d0, d1, d2, d3,
    HAS_GATE: tl.constexpr, HAS_ROWS: tl.constexpr,
    KEEP_NORM: tl.constexpr, RELATIVE: tl.constexpr, COSINE: tl.constexpr, EPS: tl.constexpr, COSINE_EPS: tl.constexpr,
    WANTS_H: tl.constexpr, WANTS_V: tl.constexpr, WANTS_GATE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_D)
    inside = column < width
    i2 = tl.program_id(1).to(tl.int64)
    step = tl.load(v + i2 * v2 + column * v3, mask=inside, other=0.0).to(tl.float32)[None, :]
    size = tl.maximum(tl.sqrt(tl.sum(step * step, 1)), COSINE_EPS)
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    first = tl.program_id(0) * chunk
    for start in range(0, chunk, BLOCK_R):
        row = first + start + tl.arange(0, BLOCK_R)
        live = (row < count) & (start + tl.arange(0, BLOCK_R) < chunk)
        i1 = (row % n1).to(tl.int64)
        i0 = (row // n1).to(tl.int64)
        mask = live[:, None] & inside[None, :]
        x = tl.load(h + (i0 * h0 + i1 * h1 + i2 * h2)[:, None] + column[None, :] * h3, mask=mask, other=0.0)
        x = x.to(tl.float32)
        g = tl.load(grad + (i0 * y0 + i1 * y1 + i2 * y2)[:, None] + column[None, :] * y3, mask=mask, other=0.0)
        g = g.to(tl.float32)
        moves = live
        if HAS_ROWS:
            moves = live & (tl.load(rows + i0 * m0 + i1 * m1 + i2 * m2, mask=live, other=0) != 0)
        strength = tl.full((BLOCK_R,), 1.0, tl.float32) * scale
        opened = tl.full((BLOCK_R,), 1.0, tl.float32)
        if HAS_GATE:
            opened = tl.load(gate + i0 * g0 + i1 * g1 + i2 * g2, mask=live, other=0.0).to(tl.float32)
        length = tl.sqrt(tl.sum(x * x, 1))
        if RELATIVE:
            strength *= length
        cosine = tl.zeros((BLOCK_R,), tl.float32)
        bounded = tl.maximum(length, COSINE_EPS)
        if COSINE:
            cosine = tl.sum(x * step, 1) / (bounded * size)
            cosine = tl.where(cosine > 0, 0.0, cosine)
        factor = 1 - cosine
        c = strength * opened * factor
        gu = g
        dlength = tl.zeros((BLOCK_R,), tl.float32)
        if KEEP_NORM:
            u = x + c[:, None] * step
            norm = tl.sqrt(tl.sum(u * u, 1))
            held = tl.maximum(norm, EPS)
            along = tl.sum(g * u, 1)
            pull = tl.where(norm > EPS, along / (held * held), 0.0)
            gu = (length / held)[:, None] * (g - pull[:, None] * u)
            dlength += along / held
        dc = tl.sum(gu * step, 1)
        if WANTS_GATE:
            at = row.to(tl.int64) * n2 + i2
            tl.store(dgate + at, tl.where(moves, dc * strength * factor, 0.0), mask=live)
        if RELATIVE:
            dlength += dc * scale * opened * factor
        dcos = tl.zeros((BLOCK_R,), tl.float32)
        if COSINE:
            dcos = tl.where(cosine < 0, -dc * strength * opened, 0.0)
        if WANTS_V:
            made = c[:, None] * gu
            if COSINE:
                made += (dcos / (bounded * size))[:, None] * x - (dcos * cosine / (size * size))[:, None] * step
            total += tl.where(moves[:, None], made, 0.0)
        if WANTS_H:
            back = gu
            if COSINE:
                back += (dcos / (bounded * size))[:, None] * step
                dlength -= dcos * cosine / bounded
            if KEEP_NORM or RELATIVE or COSINE:
                back += tl.where(length > 0, dlength / tl.maximum(length, 1e-30), 0.0)[:, None] * x
            back = tl.where(moves[:, None], back, g)
            to = (i0 * d0 + i1 * d1 + i2 * d2)[:, None] + column[None, :] * d3
            tl.store(dh + to, back.to(dh.dtype.element_ty), mask=mask)
    if WANTS_V:
        to = (tl.program_id(0) * n2 + i2) * width + column
        tl.store(dv + to, tl.sum(total, 0), mask=inside)


@on_its_device
def launch(
    grad: torch.Tensor,
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor | None,
    rows: torch.Tensor | None,
    scale: float,
    keep_norm: bool,
    relative: bool,
    cosine: bool,
    wanted: list[bool],
) -> list[torch.Tensor]:
    """The gradients of h, v and the gate, each empty where it is not wanted."""
    nothing = [h.new_empty(0), v.new_empty(0), h.new_empty(0) if gate is None else gate.new_empty(0)]
    seen = four(h, v)
    assert seen is not None
    x, vector, heads = seen
    given = four(grad if grad.is_contiguous() else grad.contiguous(), v)
    assert given is not None
    strength, chosen = spread(narrow(gate), h, heads, x.shape), spread(rows, h, heads, x.shape)
    n0, n1, n2, width = x.shape
    wide = block(width)
    tall = max(1, min(block(n0 * n1), 4096 // wide))
    chunks = min(triton.cdiv(n0 * n1, tall), max(1, programs(h.device, 4) // n2))
    chunk = triton.cdiv(triton.cdiv(n0 * n1, chunks), tall) * tall
    chunks = triton.cdiv(n0 * n1, chunk)
    dh = torch.empty(x.shape, dtype=h.dtype, device=h.device) if wanted[0] else nothing[0]
    dv = torch.empty(chunks, n2, width, dtype=torch.float32, device=h.device) if wanted[1] else nothing[1]
    dgate = torch.empty(n0, n1, n2, dtype=torch.float32, device=h.device) if wanted[2] else nothing[2]
    shift_backward_kernel[(chunks, n2)](
        given[0], x, vector, strength, chosen if chosen is None else chosen.view(torch.uint8), dh, dv, dgate,
        scale, n1, n2, n0 * n1, width, chunk,
        *given[0].stride(), *x.stride(), *vector.stride(), *strides(strength), *strides(chosen),
        *(dh.stride() if wanted[0] else (0, 0, 0, 0)),
        HAS_GATE=strength is not None, HAS_ROWS=chosen is not None,
        KEEP_NORM=keep_norm, RELATIVE=relative, COSINE=cosine, EPS=EPS, COSINE_EPS=COSINE_EPS,
        WANTS_H=wanted[0], WANTS_V=wanted[1], WANTS_GATE=wanted[2],
        BLOCK_R=tall, BLOCK_D=wide, num_warps=4 if tall * wide <= 4096 else 8,
    )  # fmt: skip
    if wanted[0]:
        dh = dh.view(h.shape)
    if wanted[1]:
        summed = dv.sum(0)
        dv = (summed if heads else summed[0]).sum_to_size(v.shape) if v.shape != summed.shape else summed
        dv = dv.to(v.dtype)
    if wanted[2]:
        assert gate is not None
        dgate = dgate.view(h.shape[:-1]).unsqueeze(-1)
        dgate = dgate.sum_to_size(gate.shape).to(gate.dtype) if gate.ndim else dgate.sum().to(gate.dtype)
    return [dh, dv, dgate]


@torch.library.custom_op(
    "steer::shift_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor h, Tensor v, Tensor? gate, Tensor? rows, float scale, bool keep_norm, bool relative, "
    "bool cosine, bool[] wanted) -> Tensor[]",
)
def gradients_operator(grad, h, v, gate, rows, scale, keep_norm, relative, cosine, wanted):  # type: ignore[no-untyped-def]
    return launch(grad, h, v, gate, rows, scale, keep_norm, relative, cosine, wanted)


@gradients_operator.register_fake
def _(grad, h, v, gate, rows, scale, keep_norm, relative, cosine, wanted):  # type: ignore[no-untyped-def]
    likes = (h, v, h if gate is None else gate)
    return [x.new_empty(x.shape) if w else x.new_empty(0) for x, w in zip(likes, wanted, strict=True)]


def gradients(
    grad: torch.Tensor,
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor | None,
    rows: torch.Tensor | None,
    scale: float,
    keep_norm: bool,
    relative: bool,
    cosine: bool,
    wanted: list[bool],
) -> list[torch.Tensor | None]:
    """The gradients of h, v and the gate; None where one is not wanted."""
    if not runs(grad, h, v, gate) or not h.numel() or four(h, v) is None:
        named = {"scale": scale, "keep_norm": keep_norm, "relative": relative, "cosine": cosine}
        return by_autograd(lambda *given: REFERENCE(*given, rows, **named), (h, v, gate), wanted, grad)
    straight = not (keep_norm or relative or cosine)
    # Then h's gradient is the one that came, which an operator could only hand on as a copy.
    asked = [wanted[0] and not straight, *wanted[1:]]
    found: list[torch.Tensor] = []
    if any(asked):
        found = gradients_operator(grad, h, v, gate, rows, scale, keep_norm, relative, cosine, asked)
    made = [f if w else None for f, w in zip(found, asked, strict=True)] if found else [None, None, None]
    if wanted[0] and straight:
        made[0] = grad
    return made
