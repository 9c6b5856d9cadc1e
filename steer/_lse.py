"""The log-sum-exp of attention scores, row by row, without keeping a score matrix."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange

from ._flex import is_block_mask, visible

CHUNK = 1 << 20
"""Scores held at one time per batch row and head."""


def masked_lse(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: Any,
    scaling: float,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """Log sum_j exp(q_i . k_j * scaling) over the keys that row i may see, in fp32.

    Args:
        query: (B, H, T, d).
        key: (B, H_kv, S, d), H a multiple of H_kv.
        scaling: what scores are multiplied by.
        mask: bool (true: visible) or additive, (B or 1, H or 1, T, >= S) or (B, S) for padding; flex attention's
            block mask; None for no mask.
        causal: with no 4-D mask, row i sees keys up to i + S - T (up to i when S = T).
        window: with `causal`, how many keys back a row sees, itself included.

    Returns:
        (B, H, T); a row that sees nothing has -inf.
    """
    groups = query.shape[1] // key.shape[1]
    grouped = rearrange(query, "b (k g) t d -> b k g t d", g=groups)
    length, total = query.shape[2], key.shape[2]
    step = max(1, CHUNK // max(total, 1))
    parts = []
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        scores = torch.einsum("bkgtd,bksd->bkgts", grouped[:, :, :, rows].float(), key.float()) * scaling
        scores = rearrange(scores, "b k g t s -> b (k g) t s")
        parts.append(_apply_mask(scores, mask, rows, length, causal, window).logsumexp(-1))
    return torch.cat(parts, dim=2)


def _apply_mask(
    scores: torch.Tensor, mask: Any, rows: slice, length: int, causal: bool, window: int | None
) -> torch.Tensor:
    total = scores.shape[-1]
    if is_block_mask(mask):
        return scores.masked_fill(~visible(mask, rows, scores.shape[0], total, scores.device), -torch.inf)
    if mask is not None and mask.ndim == 4:
        here = mask[:, :, rows if mask.shape[2] > 1 else slice(None), :total]
        return scores.masked_fill(~here, -torch.inf) if here.dtype == torch.bool else scores + here.float()
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, -total:].bool(), -torch.inf)
    if causal:
        last = torch.arange(rows.start, rows.stop, device=scores.device)[:, None] + (total - length)
        keys = torch.arange(total, device=scores.device)[None, :]
        seen = keys <= last
        if window is not None:
            seen &= keys > last - window
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores
