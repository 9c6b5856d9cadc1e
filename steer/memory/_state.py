"""What a forward leaves behind, and the parts that a memory is put together of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from .kept import Kept, pick
from .layer import KeptLayer


def everything_kept(layer: Any, mask: torch.Tensor) -> Kept:
    """Everything that a layer holds and that is no padding."""
    if isinstance(layer, KeptLayer):
        keys, values = layer.whole()
        slots, valid = layer.slots(), layer.valid()
        if layer.appended == 0 and layer.rows is None:
            return layer.kept
    else:
        keys, values, valid = layer.keys, layer.values, None
        slots = torch.arange(keys.shape[2], device=keys.device)[None, None]
    real = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device) if valid is None else valid
    tokens = mask.to(keys.device)[:, None].expand(-1, real.shape[1], -1).gather(2, slots.expand(real.shape))
    real = real & tokens
    return Kept(keys, values, slots) if bool(real.all()) else pick(keys, values, slots, real)


def copied(layer: Any) -> Any:
    """A layer of transformers' cache that can be written to; its growing kinds never write to what they hold."""
    return copy.copy(layer) if type(layer) in (DynamicLayer, KeptLayer) else copy.deepcopy(layer)


def repeat(layer: Any, repeats: int, batch: int) -> None:
    """Each of a layer's `batch` rows so many times in a row."""
    # layers with a recurrent state beside their keys repeat only the keys by `batch_repeat_interleave`
    layer.reorder_cache(torch.arange(batch).repeat_interleave(repeats))


def nbytes_of(layer: Any) -> int:
    """Bytes of every tensor that a layer of transformers' cache holds."""
    return sum(t.numel() * t.element_size() for t in tensors_of(layer))


def tensors_of(layer: Any) -> list[torch.Tensor]:
    """Every tensor that a layer of transformers' cache holds."""
    found: list[torch.Tensor] = []
    for value in vars(layer).values():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [part for part in parts if isinstance(part, torch.Tensor)]
    return found


def clear_deltas(model: Any) -> Any:
    """What an earlier call left on the model, which forgets it: a prompt without pictures would not replace it."""
    inner = getattr(model, "model", model)
    before = getattr(inner, "rope_deltas", None)
    if hasattr(inner, "get_rope_index"):
        inner.rope_deltas = None
    return before


def take_deltas(model: Any, before: Any, batch: int) -> torch.Tensor | None:
    """What the forward left on the model, which gets back what it had."""
    inner = getattr(model, "model", model)
    made = getattr(inner, "rope_deltas", None)
    if not hasattr(inner, "get_rope_index"):
        return None
    inner.rope_deltas = before
    if made is None:
        return torch.zeros(batch, 1, dtype=torch.long)
    return made.reshape(-1, 1).expand(batch, 1).clone()


def image_tokens(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Which of the inputs' tokens are image tokens, bool (B, S)."""
    from ..session import map_of

    ids, kinds = inputs["input_ids"], inputs.get("mm_token_type_ids")
    if isinstance(kinds, torch.Tensor) and kinds.shape == ids.shape:
        return kinds > 0
    token = map_of(model).image_token_id
    return torch.zeros_like(ids, dtype=torch.bool) if token is None else ids == token


def is_pictures(value: Any, shape: torch.Size) -> bool:
    """Whether an input goes with pictures rather than with tokens (B, S)."""
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[:2] != shape


def joined_shapes(
    held: Mapping[str, tuple[int, ...]], more: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shape of two tensors of pictures one after the other; along the second axis where the first is the batch."""
    made = dict(held)
    for name, shape in more.items():
        if name not in held:
            made[name] = shape
            continue
        axis = 1 if shape[0] == 1 and held[name][0] == 1 and len(shape) > 4 else 0
        made[name] = tuple(a + b if i == axis else a for i, (a, b) in enumerate(zip(held[name], shape, strict=True)))
    return made
