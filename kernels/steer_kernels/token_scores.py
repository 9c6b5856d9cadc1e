"""How much attention each key gets from a few observation queries, without the matrix of all of it.

    s[b, h, j] = sum_{w, g} softmax_j(scaling <q[b, h g, w], k[b, h, j]> + mask)_j

The score behind SnapKV (arXiv:2404.14469), H2O (arXiv:2306.14048), TOVA (arXiv:2401.06104) and EMLoC
(arXiv:2505.19812): they differ in which queries observe and in what is done to s.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from .dispatch import register

# Elements of one chunk's attention: 16 MiB in fp32, of which about three are alive.
CHUNK = 1 << 22


@torch.no_grad()
def token_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    *,
    rows: torch.Tensor | None = None,
    reduce: Literal["sum", "mean", "max"] = "sum",
) -> torch.Tensor:
    """Attention mass per key and KV head, softmax and sums in fp32; forward only.

    Args:
        query: observation queries (B, H, W, d), as attention gets them (after RoPE and norms).
        key: (B, H_kv, S, d); query head i reads KV head i // (H / H_kv).
        scaling: what scores are multiplied by.
        mask: broadcasts to (B, H, W, S); bool with True visible, or additive. None: all keys are visible.
        rows: bool (B, W), the queries that count; None: all. Queries that see no key never count.
        reduce: over the queries that count and the query heads of a group. A mean is over those pairs.

    Returns:
        (B, H_kv, S) fp32 (fp64 if the query is); 0 where no query counts.

    Raises:
        ValueError: shapes that do not fit each other, or an unknown `reduce`.
    """
    groups = _check(query, key, mask, rows, reduce)
    batch, kv_heads, keys = key.shape[0], key.shape[1], key.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    grouped = query.unflatten(1, (kv_heads, groups))
    turned = key.to(wide).mT.unsqueeze(2)
    if mask is not None:
        mask = mask.expand(batch, query.shape[1], query.shape[2], keys).unflatten(1, (kv_heads, groups))
    total = torch.zeros(batch, kv_heads, keys, dtype=wide, device=query.device)
    pairs = torch.zeros(batch, kv_heads, 1, dtype=wide, device=query.device)
    step = max(1, CHUNK // max(1, batch * query.shape[1] * keys))
    for start in range(0, query.shape[2], step):
        part = slice(start, start + step)
        scores = torch.matmul(grouped[:, :, :, part].to(wide) * scaling, turned)
        weights, counts = _weights(
            scores, None if mask is None else mask[..., part, :], None if rows is None else rows[:, part]
        )
        if reduce == "max":
            total = torch.maximum(total, weights.amax((2, 3)))
        else:
            total += weights.sum((2, 3))
            pairs += counts.to(wide).sum((2, 3))
    return total / pairs.clamp_min(1) if reduce == "mean" else total


def _weights(
    scores: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of scores (B, H_kv, G, w, S), 0 in rows that do not count, and which count, (B, H_kv, G, w, 1)."""
    counts = torch.ones_like(scores[..., :1], dtype=torch.bool)
    if mask is not None:
        # A row that is the dtype's lowest number everywhere is masked, though its softmax would be uniform. Half of
        # it, because a mask made in bf16 and widened holds a little more than the wider dtype's lowest.
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        if mask.dtype != torch.bool:
            scores = scores + mask
        counts = visible.any(-1, keepdim=True)
        scores = scores.masked_fill(~visible, -math.inf).masked_fill(~counts, 0.0)
    if rows is not None:
        counts = counts & rows[:, None, None, :, None]
    # Not a product: a padding query may hold NaN.
    return torch.softmax(scores, -1).masked_fill(~counts, 0.0), counts


def _check(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor | None, reduce: str
) -> int:
    """Query heads per KV head."""
    if query.dim() != 4 or key.dim() != 4 or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"token_scores needs query (B, H, W, d) and key (B, H_kv, S, d), got {tuple(query.shape)} and "
            f"{tuple(key.shape)}."
        )
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are no multiple of {key.shape[1]} KV heads.")
    full = (*query.shape[:3], key.shape[2])
    if mask is not None and (
        mask.dim() != 4 or any(have not in (1, want) for have, want in zip(mask.shape, full, strict=True))
    ):
        raise ValueError(f"A mask {tuple(mask.shape)} does not broadcast to (B, H, W, S) = {full}.")
    if mask is not None and mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise ValueError(f"A mask is bool (True visible) or additive and floating, got {mask.dtype}.")
    if rows is not None and (rows.dtype != torch.bool or tuple(rows.shape) != (query.shape[0], query.shape[2])):
        raise ValueError(
            f"rows is bool (B, W) = {(query.shape[0], query.shape[2])}, got {rows.dtype} {tuple(rows.shape)}."
        )
    if reduce not in ("sum", "mean", "max"):
        raise ValueError(f'reduce is "sum", "mean" or "max", got {reduce!r}.')
    return query.shape[1] // key.shape[1]


register("token_scores", token_scores)
