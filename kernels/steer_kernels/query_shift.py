"""K4: a gated low-rank change of the query, after RoPE and before attention.

    y = q + m g sqrt(d / r) (q U_q) U_k^T

q (..., H, d), U_q and U_k (H, d, r), g (..., H, 1) or None for 1. Because (q U_q) U_k^T k = (q U_q)(k U_k)^T this is
exactly the score term g (Q U_q)(K U_k)^T / sqrt(r) of Hyper-ICL (arXiv:2606.04434, equations 5 to 9) under the usual
1 / sqrt(d), without a score matrix: keys, cache and attention kernel stay as they are.
"""

from __future__ import annotations

import torch

from .dispatch import register
from .shift import shift


def query_shift(
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    gate: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """K4 in torch; rows (..., 1) or None."""
    wide = q.float() if q.dtype in (torch.float16, torch.bfloat16) else q
    low = torch.einsum("...hd,hdr->...hr", wide, u_q)
    step = torch.einsum("...hr,hdr->...hd", low, u_k) * (u_q.shape[-2] / u_q.shape[-1]) ** 0.5
    return shift(q, step, gate, rows)


register("query_shift", query_shift)
