"""RoPE inside the kernels of K4: x = q cos + rotate_half(q) sin on the first columns, in transformers' convention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._gate import four


@triton.jit
def load_query(q, cos, sin, at_q, at_c, at_s, columns, stride_q, stride_c, stride_s, kept, turned):
    """Rows of one head in fp32, rotated on their first `turned` columns where there is a cos.

    The other half of a row is a second load of the same lines, which the first left in the cache.
    """
    x = tl.load(q + at_q[:, None] + columns[None, :] * stride_q, mask=kept, other=0.0).to(tl.float32)
    if cos is not None:
        half = turned // 2
        first = columns < half
        partner = tl.where(first, columns + half, columns - half)
        inside = kept & (columns < turned)[None, :]
        other = tl.load(q + at_q[:, None] + partner[None, :] * stride_q, mask=inside, other=0.0).to(tl.float32)
        other = tl.where(first[None, :], -other, other)
        c = tl.load(cos + at_c[:, None] + columns[None, :] * stride_c, mask=inside, other=1.0).to(tl.float32)
        s = tl.load(sin + at_s[:, None] + columns[None, :] * stride_s, mask=inside, other=0.0).to(tl.float32)
        x = x * c + other * s
    return x


@triton.jit
def turned_back(dx, cos, sin, at_c, at_s, columns, stride_c, stride_s, kept, turned):
    """The gradient of q from that of RoPE(q), both (rows, d) in fp32: the rotation's transpose."""
    half = turned // 2
    first = columns < half
    inside = kept & (columns < turned)[None, :]
    c = tl.load(cos + at_c[:, None] + columns[None, :] * stride_c, mask=inside, other=1.0).to(tl.float32)
    s = tl.load(sin + at_s[:, None] + columns[None, :] * stride_s, mask=inside, other=0.0).to(tl.float32)
    partner = tl.where(columns < turned, tl.where(first, columns + half, columns - half), columns)
    across = tl.gather(dx * s, tl.broadcast_to(partner[None, :], dx.shape), 1)
    return dx * c + tl.where(first[None, :], across, -across)


def angle_strides(angle: torch.Tensor | None, shape: torch.Size) -> tuple[torch.Tensor | None, int, int, int]:
    """See cos or sin as (..., T, rot) with the strides of (B, T, rot), 0 where a batch shares it."""
    if angle is None:
        return None, 0, 0, 0
    view = four(angle.expand(*shape[:-2], angle.shape[-1]).unsqueeze(-2))
    return view, view.stride(0), view.stride(1), view.stride(3)
