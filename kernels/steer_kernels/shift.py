"""K1, K2 and the ICV factor: adding a vector to the rows of a tensor, plainly or keeping each row's length.

    u = h + c v,   c = scale g l f
    y = m ? u : h                              K1
    y = m ? u ||h|| / max(||u||, eps) : h      K2, `keep_norm`

g is a gate, l is ||h|| with `relative` and 1 without, f is 1 + relu(-cos(h, v)) with `cosine` and 1 without (ICV,
arXiv:2311.06668), m is 0 or 1 a row. Reductions in fp32, whatever the dtype of h: in half precision the norms of a
residual stream overflow. Everything is computed once in fp32 and rounded once.
"""

from __future__ import annotations

import torch

from ._dtypes import widened
from ._pieces import pieces, whole
from .dispatch import kernel

EPS = 1e-6
# Numbers at a time where h is large: few operations a number, so that new memory is what takes time.
PIECE = 1 << 16
COSINE_EPS = 1e-8


@kernel
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
    """Move the rows of h along v; gradients for h, v and the gate.

    A row with NaN, or with infinity where a norm is taken, is NaN; the others do not see it, and rows that `rows`
    leaves out come back bit for bit.

    Args:
        h: (..., D), floating, any strides.
        v: broadcasts against h; fp32 (fp64 where h is).
        gate: (..., 1), broadcasts against h; fp32. A per-layer scalar that is learned is a 0-d gate.
        rows: bool, broadcasts against h without its last dimension; None moves every row.
        scale: a number on the whole step.
        keep_norm: every row keeps the length it had.
        relative: the step is as many times the row's own length.
        cosine: up to twice the step where h points away from v.

    Returns:
        Shape and dtype of h.
    """
    by_norms = keep_norm or relative or cosine
    one_pass = not by_norms and gate is None and rows is None and h.dtype == v.dtype
    if not one_pass and not whole(h, v, gate):
        return _piecewise(h, v, gate, rows, scale, keep_norm, relative, cosine)
    return _shifted(h, v, gate, rows, scale, keep_norm, relative, cosine)


def _shifted(
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor | None,
    rows: torch.Tensor | None,
    scale: float,
    keep_norm: bool,
    relative: bool,
    cosine: bool,
) -> torch.Tensor:
    if not (keep_norm or relative or cosine):
        step = v if gate is None else gate * v
        y = h + (step if scale == 1.0 else scale * step)
        y = y if y.dtype == h.dtype else y.to(h.dtype)
    else:
        y = _by_norms(h, v, gate, scale, keep_norm, relative, cosine)
    return y if rows is None else torch.where(rows.unsqueeze(-1), y, h)


def _piecewise(
    h: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None, rows: torch.Tensor | None, scale: float, *flags: bool
) -> torch.Tensor:
    axis = -3 if v.ndim > 1 and v.shape[-2] > 1 else -2
    if h.ndim < -axis:
        return _shifted(h, v, gate, rows, scale, *flags)
    out = torch.empty_like(h)
    tail = (slice(None),) * (-axis - 1)
    v = v.expand(h.shape) if v.ndim > 2 else v
    gate = None if gate is None else gate.expand(*h.shape[:-1], 1)
    rows = None if rows is None else rows.expand(h.shape[:-1])
    for part in pieces(h, axis, PIECE):
        at = (..., part, *tail)
        out[at] = _shifted(
            h[at], v[at] if v.ndim > 2 else v, None if gate is None else gate[at],
            None if rows is None else rows[(..., part, *tail[1:])], scale, *flags,
        )  # fmt: skip
    return out


def _by_norms(
    h: torch.Tensor,
    v: torch.Tensor,
    gate: torch.Tensor | None,
    scale: float,
    keep_norm: bool,
    relative: bool,
    cosine: bool,
) -> torch.Tensor:
    wide = widened(h)
    strength = gate
    length = wide.norm(dim=-1, keepdim=True)
    if relative:
        strength = length if strength is None else strength * length
    if cosine:
        dot = (wide * v).sum(-1, keepdim=True)
        away = torch.relu(-dot / (length.clamp_min(COSINE_EPS) * v.norm(dim=-1, keepdim=True).clamp_min(COSINE_EPS)))
        strength = 1 + away if strength is None else strength * (1 + away)
    step = v if strength is None else strength * v
    moved = wide + (step if scale == 1.0 else scale * step)
    if keep_norm:
        moved = moved * (length / moved.norm(dim=-1, keepdim=True).clamp_min(EPS))
    return moved.to(h.dtype)


@kernel
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
    """`shift` into h itself, which is returned; arguments as there. For tensors that nothing differentiates."""
    plain = shift.reference  # type: ignore[attr-defined]
    return h.copy_(plain(h, v, gate, rows, scale=scale, keep_norm=keep_norm, relative=relative, cosine=cosine))
