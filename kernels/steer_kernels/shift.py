"""K1 and K2: adding a vector to the rows of a residual stream, plainly or keeping each row's length.

    K1   y = h + m g v
    K2   u = h + g v ;  y = m ? u ||h|| / max(||u||, eps) : h

h (..., D), v broadcasts against h, g (..., 1) or None for 1, m bool (...) or None for every row.
"""

from __future__ import annotations

import torch

from .dispatch import register

EPS = 1e-6


def shift(
    h: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None = None, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """K1 in torch: one addition where nothing is gated or masked."""
    step = v if gate is None else gate * v
    y = h + step
    y = y if y.dtype == h.dtype else y.to(h.dtype)
    return y if rows is None else torch.where(rows.unsqueeze(-1), y, h)


def shift_keep_norm(
    h: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None = None, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """K2 in torch; norms are taken in fp32, never in half precision, where large activations overflow."""
    wide = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
    moved = wide + (v if gate is None else gate * v)
    ratio = wide.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp_min(EPS)
    y = (moved * ratio).to(h.dtype)
    return y if rows is None else torch.where(rows.unsqueeze(-1), y, h)


register("shift", shift)
register("shift_keep_norm", shift_keep_norm)
