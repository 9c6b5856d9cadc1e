"""How an operation on rows sees its tensors: (N0, N1, H, D), with strides of 0 where something broadcasts."""

from __future__ import annotations

import torch


def four(h: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """See h as (N0, N1, H, D) and v as (H or 1, D), and say whether h came with heads; None for other layouts.

    v may differ from head to head (the dimension before the last), not from row to row.
    """
    while v.ndim > 1 and v.shape[0] == 1:
        v = v[0]
    if v.ndim > 2 or h.ndim < 1:
        return None
    heads = v.ndim == 2
    if v.shape[-1] not in (1, h.shape[-1]) or (heads and (h.ndim < 2 or v.shape[0] != h.shape[-2])):
        return None
    v = v.expand(*v.shape[:-1], h.shape[-1])
    x = h if heads else h.unsqueeze(-2)
    while x.ndim < 4:
        x = x.unsqueeze(0)
    if x.ndim > 4 and not x.is_contiguous():
        return None
    return x.flatten(0, x.ndim - 4), v if heads else v[None], heads


def spread(t: torch.Tensor | None, h: torch.Tensor, heads: int, shape: torch.Size) -> torch.Tensor | None:
    """A gate or a mask without its last dimension, broadcast against h without its last, as (N0, N1, H)."""
    if t is None:
        return None
    t = t.expand(h.shape[:-1])
    return (t if heads else t.unsqueeze(-1)).reshape(shape[:3])


def narrow(gate: torch.Tensor | None) -> torch.Tensor | None:
    """A gate (..., 1) without its last dimension."""
    return gate if gate is None or not gate.ndim else gate.squeeze(-1)


def strides(t: torch.Tensor | None) -> tuple[int, ...]:
    """The strides of (N0, N1, H), zeros for what is not there."""
    return (0, 0, 0) if t is None else t.stride()
