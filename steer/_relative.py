"""Additions to attention scores that are a share of each score's own size.

They need the scores themselves, which fused attention never shows. So they are for few queries: those rows are worked
out once more with their own additive mask, in chunks, and take the place of the fused result; no (T, S) tensor is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from ._lse import CHUNK
from ._scores import LIMIT, Call, merge
from .errors import InterventionError

Factors = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Share:
    """S += |S| * a b^T for the queries at `rows`.

    Attributes:
        a: (B or 1, H, T, 1), zero at rows that were not chosen.
        b: (B or 1, 1 or H, S, 1).
        rows: int64 (B, R), the slots in this forward outside which `a` is zero; None where that may be anywhere.
    """

    a: torch.Tensor
    b: torch.Tensor
    rows: torch.Tensor | None


def bias_of(call: Call, factors: Factors, shares: list[Share], rows: torch.Tensor | None = None) -> torch.Tensor:
    """All additions to the scores of some rows (int64 (B, R); None for all), (B, H, R or T, S) in fp32."""
    query = call.query if rows is None else rows_of(call.query, rows)
    groups = query.shape[1] // call.key.shape[1]
    grouped = rearrange(query, "b (k g) t d -> b k g t d", g=groups)
    scores = torch.einsum("bkgtd,bksd->bkgts", grouped.float(), call.key.float()) * call.scaling
    size = rearrange(scores, "b k g t s -> b (k g) t s").abs()

    def outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a = a if rows is None else rows_of(a.expand(query.shape[0], -1, -1, -1), rows)
        return a.float() @ b.float().transpose(-1, -2)

    bias = sum(outer(share.a, share.b) for share in shares) * size
    for a, b in factors:
        bias = bias + outer(a, b)
    return bias.clamp(-LIMIT, LIMIT)


def check(call: Call) -> None:
    """Raise where the attention function takes no additive mask."""
    if call.fused:
        raise InterventionError(
            f"KeyBias(relative=True) needs the scores, which {call.implementation} attention does not show; "
            'load the model with attn_implementation="sdpa" or "eager"'
        )
    if call.mask is not None and not (isinstance(call.mask, torch.Tensor) and call.mask.ndim == 4):
        kind = type(call.mask).__name__
        raise InterventionError(f"KeyBias(relative=True) cannot extend the {kind} of {call.implementation} attention")


def rewrite(
    output: torch.Tensor, call: Call, factors: Factors, shares: list[Share], attend: Callable[[Call], torch.Tensor]
) -> torch.Tensor:
    """Put the rows that a share changes in the place of those in the output.

    Args:
        output: (B, T, H, d_v) without the shares.
        call: before columns were added to it.
        factors: the other additions to the scores, which count in these rows too.
        shares: all of them.
        attend: the attention function that was in use, giving (B, R, H, d_v).

    Returns:
        A new output.
    """
    batch, length, total = call.query.shape[0], call.query.shape[2], call.key.shape[2]
    rows = _common_rows(shares)
    if rows is None:
        rows = torch.arange(length, device=output.device).expand(batch, length)
    which = torch.arange(batch, device=output.device)[:, None]
    for part in rows.split(max(1, CHUNK // max(total, 1)), dim=1):
        here = Call(
            rows_of(call.query, part), call.key, call.value, mask_of(call, part), _kwargs_of(call, part),
            call.implementation, False, call.slots,
        )  # fmt: skip
        here.kwargs.update(scaling=call.scaling, is_causal=False)
        here.mask = merge(here, bias_of(call, factors, shares, part))
        output = output.index_put((which, part), attend(here).to(output.dtype))
    return output


def _common_rows(shares: list[Share]) -> torch.Tensor | None:
    """The rows that all shares are about, where that is known."""
    first = shares[0].rows
    same = first is not None and all(s.rows is not None and s.rows is first for s in shares)
    return first if same else None


def rows_of(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """X (B, H, T, n) at rows (B, R)."""
    return x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def mask_of(call: Call, rows: torch.Tensor) -> torch.Tensor | None:
    """What these rows may see: a mask (B, 1 or H, R, S), or None for everything."""
    mask, length, total = call.mask, call.query.shape[2], call.key.shape[2]
    if mask is not None:
        mask = mask[..., :total].expand(rows.shape[0], -1, length if mask.shape[2] == 1 else -1, -1)
        return rows_of(mask, rows)
    if not call.causal:
        return None
    last = rows[:, None, :, None] + (total - length)
    keys = torch.arange(total, device=rows.device)
    seen = keys <= last
    window = call.kwargs.get("sliding_window")
    return seen if window is None else seen & (keys > last - window)


def _kwargs_of(call: Call, rows: torch.Tensor) -> dict[str, Any]:
    """The other arguments, those that have a row for each query among them."""
    kwargs = dict(call.kwargs)
    bias = kwargs.get("position_bias")
    if isinstance(bias, torch.Tensor) and bias.shape[2] == call.query.shape[2]:
        kwargs["position_bias"] = rows_of(bias.expand(rows.shape[0], -1, -1, -1), rows)
    return kwargs


def rows_as_index(rows: Any, batch: int, length: int, single: bool, device: torch.device) -> torch.Tensor | None:
    """Resolved rows as int64 (B, R); None where they are too many to list or cannot be known without asking the device.

    Args:
        rows: None, a slice, or a bool mask (B, T).
        batch: B.
        length: T.
        single: whether a mask has at most one row for each of the batch.
        device: where the index is made.
    """
    if isinstance(rows, slice):
        return torch.arange(*rows.indices(length), device=device).expand(batch, -1)
    if isinstance(rows, torch.Tensor) and single:
        return rows.int().argmax(dim=1, keepdim=True).expand(batch, 1)
    return None
