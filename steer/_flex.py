"""What flex attention is told of a mask: a function of indices, (batch, head, query, key) -> visible."""

from __future__ import annotations

from typing import Any

import torch


def is_block_mask(mask: object) -> bool:
    """Whether a mask is flex attention's: it carries its rule as `mask_mod` instead of its entries."""
    return hasattr(mask, "mask_mod")


def visible(mask: Any, rows: slice, batch: int, total: int, device: torch.device) -> torch.Tensor:
    """The mask's entries for some query rows, bool (B, H or 1, rows, S)."""
    b = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    h = torch.arange(mask.shape[1], device=device).view(1, -1, 1, 1)
    q = torch.arange(rows.start, rows.stop, device=device).view(1, 1, -1, 1)
    k = torch.arange(total, device=device).view(1, 1, 1, -1)
    seen: torch.Tensor = mask.mask_mod(b, h, q, k)
    return seen.expand(batch, mask.shape[1], q.numel(), total)


def with_prefix(mask: Any, count: int) -> Any:
    """The mask with `count` more keys in front of the others, which every query sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    batch, heads, length, total = mask.shape
    inner = mask.mask_mod

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        # the inner rule may look its key up in a padding mask: never with an index below zero
        return (k < count) | inner(b, h, q, torch.clamp(k - count, min=0))

    device = mask.kv_num_blocks.device
    # without a kernel of its own the rule is applied entry by entry: B, H (mostly 1), T and S + n booleans, once a call
    return create_block_mask(mask_mod, batch, heads, length, total + count, device=device)
