"""A layer's own mask: the columns of the whole sequence's mask at the slots that the layer kept."""

from __future__ import annotations

from typing import Any

import torch

from .._flex import is_block_mask
from ..errors import InterventionError


def at_slots(
    mask: Any, slots: torch.Tensor, valid: torch.Tensor | None, length: int, heads: int, flash: bool = False
) -> Any:
    """Take a mask's columns.

    Args:
        mask: bool (true: visible) or additive, (B or 1, H or 1, T, S), 2-D padding (B, S), flex attention's block mask,
            or None for one that hides nothing but the future.
        slots: int64 (B or 1, H_kv or 1, n), the columns to take; the last T are those of this forward.
        valid: bool (B, H_kv, n), false where a column holds no key, or None.
        length: T.
        heads: query heads.
        flash: the attention function takes padding (B, S) only, and sees to causality itself.

    Returns:
        The mask (B or 1, H or 1, T, n), or None where the attention function takes padding and there is none.

    Raises:
        InterventionError: the attention function's mask cannot say what heads differ in.
    """
    if is_block_mask(mask):
        return _of_blocks(mask, slots, valid, heads)
    if flash or (mask is not None and mask.ndim == 2):
        return _of_padding(mask, slots, valid)
    if mask is None:
        where = _per_query_head(slots, heads)
        taken = where[..., None, :] <= where[..., -length:, None]
    else:
        taken = _columns(mask, _per_query_head(slots, heads), length)
    if valid is not None:
        taken = _hide(taken, _per_query_head(valid, heads)[..., None, :])
    return taken


def _per_query_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """From (B, H_kv, ...) to (B, H, ...); one for all heads stays one."""
    return x if x.shape[1] in (1, heads) else x.repeat_interleave(heads // x.shape[1], dim=1)


def _columns(mask: torch.Tensor, slots: torch.Tensor, length: int) -> torch.Tensor:
    if slots.shape[:2] == (1, 1):
        return mask.index_select(-1, slots[0, 0])
    batch, heads = max(mask.shape[0], slots.shape[0]), max(mask.shape[1], slots.shape[1])
    rows = mask.shape[2]
    whole = mask.expand(batch, heads, rows, mask.shape[-1])
    return whole.gather(-1, slots[:, :, None].expand(batch, heads, rows, slots.shape[-1]))


def _hide(mask: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask & visible
    return torch.where(visible, mask, torch.finfo(mask.dtype).min)


def _of_padding(mask: torch.Tensor | None, slots: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None and valid is None:
        return None
    if not _alike(slots) or not (valid is None or _alike(valid)):
        raise InterventionError(
            "this attention function takes padding but no mask per head, and the heads kept different tokens; "
            'use attn_implementation="sdpa", leave the padding out, or keep the same tokens in all heads of a layer'
        )
    if mask is None:
        assert valid is not None
        return valid[:, 0]
    taken: torch.Tensor = mask.gather(-1, slots[:, 0].expand(mask.shape[0], -1))
    return taken if valid is None else torch.where(valid[:, 0], taken, 0)


def _alike(x: torch.Tensor) -> bool:
    """Whether all heads of (B, H, n) have the same."""
    return x.shape[1] == 1 or bool((x == x[:, :1]).all())


def _of_blocks(mask: Any, slots: torch.Tensor, valid: torch.Tensor | None, heads: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    inner, batch, length = mask.mask_mod, mask.shape[0], mask.shape[2]
    where = _per_query_head(slots, heads)
    where = where.expand(max(batch, where.shape[0]), heads, -1)
    seen = None if valid is None else _per_query_head(valid, heads).expand(where.shape)

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        shown = inner(b, h, q, where[b, h, k])
        return shown if seen is None else shown & seen[b, h, k]

    device = mask.kv_num_blocks.device
    return create_block_mask(mask_mod, where.shape[0], heads, length, where.shape[-1], device=device)
