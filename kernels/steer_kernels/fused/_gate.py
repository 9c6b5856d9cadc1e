"""The sigmoid gate inside the kernels of K3 and K4, and the layout in which those see heads.

    z = <f(x), w> + b - lse ,   g = sigmoid(z) ,   dz = g (1 - g) dg

f is the identity, or the LayerNorm f = (x - mean) rstd with rstd = 1 / sqrt(var + eps), whose backward for a gradient
dz w is dx = dz rstd (w - mean(w) - f mean(w f)).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..gate import LAYER_NORM_EPS
from ._op import like

EPS = tl.constexpr(LAYER_NORM_EPS)


@triton.jit
def normed(x, kept, dim):
    """The LayerNorm of x (ROWS, DIM), whose columns beyond `dim` are 0 and stay so, and rstd (ROWS,)."""
    mean = tl.sum(x, 1) / dim
    centred = tl.where(kept, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / dim + EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def sigmoid(z):
    """The gate g and its slope g (1 - g), without 1 - g, which loses every digit where the gate is open."""
    small = tl.exp(-tl.abs(z))
    share = 1.0 / (1.0 + small)
    return tl.where(z < 0, small * share, share), small * share * share


@triton.jit
def gate_to_x(f, rstd, w, dot, dz, kept, dim, LAYER_NORM: tl.constexpr):
    """The gradient (ROWS, DIM) of z with respect to x, times dz; dot is <f, w> (ROWS,)."""
    if LAYER_NORM:
        off = w[None, :] - tl.sum(w, 0) / dim - f * (dot / dim)[:, None]
        return tl.where(kept, (dz * rstd)[:, None] * off, 0.0)
    return dz[:, None] * w[None, :]


@triton.jit
def place(row, live, time, stride_b, stride_t):
    """Where each row (b, t) of a (B, T, ...) tensor starts; rows that are not live are put at the first."""
    row = tl.where(live, row, 0)
    return (row // time).to(tl.int64) * stride_b + (row % time).to(tl.int64) * stride_t


def four(x: torch.Tensor) -> torch.Tensor:
    """See x (..., T, H, d) as (B, T, H, d): a view, but for more than four dimensions that cannot be merged."""
    if x.ndim == 4:
        return x
    return x.unsqueeze(0) if x.ndim == 3 else x.reshape(-1, *x.shape[-3:])


def rows_strides(rows: torch.Tensor | None, shape: torch.Size) -> tuple[torch.Tensor | None, int, int]:
    """Rows (...,) of `shape` (..., T), expanded, as bytes with the strides of (B, T)."""
    if rows is None:
        return None, 0, 0
    view = four(rows.view(torch.uint8).expand(shape)[..., None, None])
    return view, view.stride(0), view.stride(1)


def heads_strides(x: torch.Tensor | None, shape: torch.Size) -> tuple[torch.Tensor | None, int, int, int]:
    """A number a head, broadcastable to (..., T, H, 1) of `shape` (..., T, H, d), with the strides of (B, T, H)."""
    if x is None:
        return None, 0, 0, 0
    view = four(x.expand(*shape[:-1], 1))
    return view, *view.stride()[:3]


def each(x: torch.Tensor | None, ndim: int) -> tuple[int, ...]:
    """The strides of a parameter (H, ...); 0 for the first where one is shared by all heads."""
    if x is None:
        return (0,) * ndim
    return x.stride() if x.shape[0] > 1 else (0, *x.stride()[1:])


def room(x: torch.Tensor) -> torch.Tensor:
    """An output of x's shape, dtype and (for at most four dimensions) memory layout, not yet written."""
    return torch.empty_like(x) if x.ndim <= 4 else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def summed(partial: torch.Tensor | None, x: torch.Tensor | None) -> torch.Tensor | None:
    """Partial sums (parts, n, ...) as the gradient of x (n or 1, ...)."""
    if partial is None or x is None:
        return None
    total = partial.sum(0)
    total = total if x.shape[0] == total.shape[0] else total.sum(0, keepdim=True)
    return total.to(x.dtype)


def given(
    grad: torch.Tensor,
    inputs: Sequence[torch.Tensor | None],
    found: Sequence[torch.Tensor | None],
    wanted: Sequence[bool],
) -> list[torch.Tensor]:
    """Gradients as an operator returns them: laid out as the inputs, zero where none was found, empty if not wanted."""
    return [
        grad.new_empty(0) if x is None or not want else like(x, x.new_zeros(x.shape) if d is None else d)
        for x, d, want in zip(inputs, found, wanted, strict=True)
    ]


def promised(grad: torch.Tensor, inputs: Sequence[torch.Tensor | None], wanted: Sequence[bool]) -> list[torch.Tensor]:
    """What `given` returns, without numbers."""
    return [
        grad.new_empty(0) if x is None or not want else torch.empty_like(x)
        for x, want in zip(inputs, wanted, strict=True)
    ]
