"""Additions to attention scores (K5) and extra keys and values, in front of whatever attention function is in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from steer_kernels import key_bias

from ._flex import is_block_mask, with_prefix
from .errors import InterventionError

LIMIT = 1e4
"""Scores stay finite: an infinite one turns a fully masked row into NaN."""


@dataclass
class Call:
    """One call of an attention function, as it is being prepared.

    Attributes:
        query: (B, H, T, d).
        key, value: (B, H_kv, S, d) and (B, H_kv, S, d_v).
        mask: what transformers made for this attention function, or None.
        kwargs: everything else, `scaling` among it.
        implementation: the name of the attention function.
        causal: whether no mask means a causal one to this function (never to eager and flex, which see by their mask).
        slots: where the keys stand in the sequence, int64 (B or 1, H_kv or 1, S), where some were dropped; else None.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    kwargs: dict[str, Any]
    implementation: str
    causal: bool
    slots: torch.Tensor | None = None

    @property
    def scaling(self) -> float:
        given = self.kwargs.get("scaling")
        return float(given) if given is not None else self.query.shape[-1] ** -0.5

    @property
    def fused(self) -> bool:
        """Whether the function reads no additive mask and takes only what q, k, v carry."""
        return "flash" in self.implementation or "flex" in self.implementation

    @property
    def takes_mask(self) -> bool:
        """Whether additions to the scores go into the mask: at one query row and in eager attention that is free."""
        return self.implementation == "eager" or (self.query.shape[2] == 1 and not self.fused)


def add_bias(call: Call, factors: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Add sum_r a_r b_r^T to the scores.

    At one query row, and in eager attention, as an additive mask; otherwise as extra columns of q and k, with v widened
    by as many, so that a fused kernel keeps its fast path and no (T, S) tensor is made.

    Args:
        call: changed in place.
        factors: pairs a (B or 1, H or 1, T, 1), b (B or 1, 1 or H, S, 1) in units of the scaled scores; a is clamped to
            +-LIMIT, and to what a column can hold in q's dtype (about +-5,200 in fp16 with heads of 128).

    Returns:
        How many columns to drop from the output.
    """
    # a column holds a / scaling, which must be finite in fp16 too: infinity times the 0 of a key not chosen is NaN
    scaling = call.scaling
    holds = torch.finfo(call.query.dtype).max * abs(scaling) * 0.9
    limit = LIMIT if call.takes_mask else min(LIMIT, holds)
    factors = [(a.clamp(-limit, limit), b) for a, b in factors]
    if call.takes_mask:
        bias = sum(a @ b.transpose(-1, -2) for a, b in factors)
        assert isinstance(bias, torch.Tensor)
        call.mask = merge(call, bias)
        return 0
    call.kwargs["scaling"] = scaling
    width = call.query.shape[-1]
    extra = len(factors)
    if call.query.is_cuda:
        extra = -(-(width + extra) // 8) * 8 - width
    left = _beside([a for a, _ in factors], call.query)
    right = _beside([_per_key(b, call.key) for _, b in factors], call.key)
    call.query, call.key, call.value = key_bias(call.query, call.key, call.value, left, right, scaling, extra)
    return extra


def _beside(factors: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Factors (B or 1, H or 1, T or 1, 1) of the rows of x as columns of one tensor; a single one need not be wide."""
    return factors[0] if len(factors) == 1 else torch.cat([f.expand(*x.shape[:3], 1) for f in factors], dim=-1)


def _per_key(b: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A key's factor is one for all query heads of its group."""
    return b if b.shape[1] == 1 else b[:, :: b.shape[1] // key.shape[1]]


def add_prefix(call: Call, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Put n keys and values, (H_kv, n, d) and (H_kv, n, d_v), in front of those that every query sees."""
    count, length, total = keys.shape[1], call.query.shape[2], call.key.shape[2]
    batch = call.key.shape[0]
    mask = call.mask
    if is_block_mask(mask):
        mask = with_prefix(mask, count)
    elif mask is not None and not isinstance(mask, torch.Tensor):
        raise InterventionError(f"kv_prefix cannot extend the {type(mask).__name__} of {call.implementation} attention")
    elif mask is None and call.causal and length > 1 and not call.fused:
        mask = torch.ones(length, total, dtype=torch.bool, device=call.key.device).tril(total - length)[None, None]
    if isinstance(mask, torch.Tensor):
        visible = 1 if mask.dtype == torch.bool or mask.ndim == 2 else 0
        mask = pad(mask[..., :total] if mask.ndim == 4 else mask, (count, 0), value=visible)
    call.mask = mask
    bias = call.kwargs.get("position_bias")
    if isinstance(bias, torch.Tensor):
        call.kwargs["position_bias"] = pad(bias, (count, 0))
    call.key = torch.cat([keys.to(call.key.dtype).expand(batch, *keys.shape), call.key], dim=2)
    call.value = torch.cat([values.to(call.value.dtype).expand(batch, *values.shape), call.value], dim=2)


def merge(call: Call, bias: torch.Tensor) -> torch.Tensor:
    """One additive mask from the model's own and the bias (B or 1, H or 1, T, S)."""
    dtype, total = call.query.dtype, call.key.shape[2]
    lowest = torch.finfo(dtype).min
    mask = call.mask
    if mask is None:
        merged = bias.to(dtype)
    elif mask.dtype == torch.bool:
        merged = torch.where(mask[..., :total], bias.to(dtype), lowest)
    else:
        merged = (mask[..., :total] + bias).clamp_min(lowest).to(dtype)
    heads = call.query.shape[1]
    return merged.expand(merged.shape[0], heads, *merged.shape[2:])
