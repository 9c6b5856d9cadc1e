"""From what a user hands to a model with a memory to what it needs: the question, and where that stands."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ..errors import InterventionError

if TYPE_CHECKING:
    from .memory import Memory


def question_of(
    memory: Memory, inputs: Mapping[str, Any], alone: bool = False
) -> tuple[dict[str, Any], torch.Tensor | None]:
    """The inputs without what the memory holds, and the tokens that were taken off their front (None: nothing was).

    Inputs that begin with the memory's own tokens are taken as the whole sequence, others as the question alone. Whole
    sequences may be padded in front of the context: then each row's question is what comes after its own. `alone` says
    that they are no whole sequence, however they begin.

    Raises:
        InterventionError: there are no token ids, the question is empty, or it cannot be told which pictures are new.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    ids = given.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        raise InterventionError(
            "a model with a memory needs `input_ids` (B, S), of the question or of the whole sequence"
        )
    if not ids.shape[1]:
        raise InterventionError("the question is empty: one token or more is needed after a memory")
    lengths = None if alone else _new_tokens(memory, ids, given.get("attention_mask"))
    if lengths is None:
        return given, None
    if not bool((lengths > 0).all()):
        raise InterventionError(
            "there is nothing after the memory's own tokens: a question of one token or more is needed"
        )
    longest = int(lengths.max())
    cut = ids.shape[1] - longest
    made = {name: _cut(memory, name, value, ids.shape, cut) for name, value in given.items()}
    if int(lengths.min()) < longest:
        # what of a row's context stands beside another row's question
        context = torch.arange(longest, device=ids.device) < longest - lengths[:, None]
        made["attention_mask"] = made["attention_mask"].masked_fill(context, 0)
    return made, ids[:, :cut]


def _new_tokens(memory: Memory, ids: torch.Tensor, mask: Any) -> torch.Tensor | None:
    """How many columns at each row's end come after the memory's own tokens, int64 (B,), or None if it lacks those."""
    length, batch = memory.length, ids.shape[0]
    if not length or ids.shape[1] < length:
        return None
    held = memory.rows(batch)
    tokens, real = held.tokens.to(ids.device), held.mask.to(ids.device)
    if torch.equal(ids[:, :length], tokens):
        return torch.full((batch,), ids.shape[1] - length, device=ids.device)
    if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape or not bool((mask == 0).any()):
        return None
    lengths = []
    for row in range(batch):
        here = mask[row].nonzero()[:, 0]
        own = tokens[row][real[row]]
        if not torch.equal(ids[row, here[: own.numel()]], own):
            return None
        lengths.append(ids.shape[1] - int(here[own.numel()]) if here.numel() > own.numel() else 0)
    return torch.tensor(lengths, device=ids.device)


def _cut(memory: Memory, name: str, value: Any, shape: torch.Size, cut: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.shape[:2] == shape:
        return value[:, cut:]
    if name == "position_ids" and value.shape[-1] == shape[1]:
        return value[..., cut:]
    held = memory.shapes.get(name)
    if held is None or value.ndim != len(held):
        return value
    if shape[0] != 1:
        raise InterventionError(
            f"{name} holds the pictures of all {shape[0]} rows, the memory's among them: give the questions alone"
        )
    more = [axis for axis, (new, old) in enumerate(zip(value.shape, held, strict=True)) if new != old]
    if not more:
        return None
    return value.narrow(more[0], held[more[0]], value.shape[more[0]] - held[more[0]])


def placed(model: Any, memory: Memory, question: Mapping[str, Any], generating: bool) -> dict[str, Any]:
    """The question's inputs with the mask of everything before it and, where the model would not find it, its place."""
    inputs = {name: value for name, value in question.items() if value is not None}
    ids = inputs["input_ids"]
    held = memory.rows(ids.shape[0])
    mask = inputs.get("attention_mask")
    own = torch.ones_like(ids) if mask is None else mask
    inputs["attention_mask"] = torch.cat([held.mask.to(own.device, own.dtype), own], dim=1)
    if "position_ids" in inputs:
        return inputs
    inner = getattr(model, "model", model)
    if hasattr(inner, "get_rope_index"):
        places = _in_axes(model, inner, held, {**inputs, "attention_mask": own})
        if places is not None:
            inputs["position_ids"] = places
    elif not generating and "position_ids" in inspect.signature(model.forward).parameters:
        whole = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp_min(0)
        inputs["position_ids"] = whole[:, -ids.shape[1] :]
    return inputs | _as_long_as_the_mask(inputs) if generating else inputs


def check_padding(memory: Memory, inputs: Mapping[str, Any], more: int | None = 0) -> None:
    """Padding between a memory and a question is hidden from attention, but other layers would take it for text.

    Args:
        memory: what is asked.
        inputs: of the question.
        more: how many tokens will be written after it; None: no one knows.

    Raises:
        InterventionError: rows are padded, and the memory holds a recurrent state, or a window that this falls into.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or bool(mask.bool().all()):
        return
    total = None if more is None else memory.length + mask.shape[1] + more
    if padding_matters(memory, total):
        raise InterventionError(
            "the questions are padded, and some of this model's layers (recurrent ones, or windows that padding would "
            "fill) have no mask for what stands between a memory and a question: ask questions of one length at a time"
        )


def padding_matters(memory: Memory, total: int | None) -> bool:
    """Whether padding after this memory changes answers, in a sequence of so many tokens (None: of any length)."""
    return bool(memory.length) and any(_counts_padding(layer, total) for layer in memory.layers)


def _counts_padding(layer: Any, total: int | None) -> bool:
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return True
    window = getattr(layer, "sliding_window", None)
    return window is not None and (total is None or total > window)


def _as_long_as_the_mask(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`generate` takes slices of these by slot where it reads a prompt in chunks, and from the end elsewhere."""
    total = inputs["attention_mask"].shape[1]
    names = ("position_ids", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
    here = {name: inputs[name] for name in names if isinstance(inputs.get(name), torch.Tensor)}
    return {name: torch.nn.functional.pad(value, (total - value.shape[-1], 0)) for name, value in here.items()}


def _in_axes(model: Any, inner: Any, held: Any, inputs: dict[str, Any]) -> torch.Tensor | None:
    """Positions in several dimensions: the model's own for the question alone, moved behind the memory's last."""
    find = getattr(model, "_prepare_position_ids_for_generation", None)
    if find is None:
        return None
    ids = inputs["input_ids"]
    inner.rope_deltas = None
    places: torch.Tensor = find(ids, inputs)
    real = held.mask.sum(-1, keepdim=True).to(ids.device)
    delta = torch.zeros_like(real) if held.rope_deltas is None else held.rope_deltas.to(ids.device)
    if inner.rope_deltas is not None:
        inner.rope_deltas = inner.rope_deltas.to(ids.device) + delta
    if places.ndim == 2:
        return places + real
    moved = places + (real + delta)
    if places.shape[0] == 4:
        moved[0] = places[0] + real
    return moved
