"""From what a user hands to a model with a memory to what it needs: the question, and where that stands."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InterventionError

if TYPE_CHECKING:
    from .memory import Memory


def question_of(memory: Memory, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
    """The inputs without what the memory holds, and the tokens that were taken off their front (None: nothing was).

    Inputs that begin with the memory's own tokens are taken as the whole sequence, others as the question alone.

    Raises:
        InterventionError: there are no token ids, the question is empty, or it cannot be told which pictures are new.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    ids = given.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        raise InterventionError(
            "a model with a memory needs `input_ids` (B, S), of the question or of the whole sequence"
        )
    if not memory.length or ids.shape[1] < memory.length:
        return given, None
    before = memory.rows(ids.shape[0]).tokens.to(ids.device)
    if not torch.equal(ids[:, : memory.length], before):
        return given, None
    if ids.shape[1] == memory.length:
        raise InterventionError(
            "there is nothing after the memory's own tokens: a question of one token or more is needed"
        )
    return {name: _cut(memory, name, value, ids.shape) for name, value in given.items()}, before


def _cut(memory: Memory, name: str, value: Any, shape: torch.Size) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.shape[:2] == shape:
        return value[:, memory.length :]
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
    return inputs


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
