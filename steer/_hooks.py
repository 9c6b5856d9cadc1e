"""The bodies of the hooks: each takes a tensor out of what a module was given or returned and puts the new one back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import nn

from ._attention import AttentionPlan
from ._caches import cache_of
from ._step import Place, Stage, Tally
from .contrast import aside
from .errors import InterventionError, MappingError
from .model_map import Projection

Steps = Sequence[Stage]


def before(module: nn.Module, steps: Steps) -> Any:
    """Run steps on a module's first input, (B, T, D)."""
    name = next(iter(inspect.signature(module.forward).parameters), "hidden_states")

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs[name]
        for step in steps:
            x = step(x)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, name: x})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def after(module: nn.Module, steps: Steps) -> Any:
    """Run steps on a module's output, (B, T, D), alone or first in a tuple or ModelOutput."""
    only = steps[0] if len(steps) == 1 else None

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x = output if isinstance(output, torch.Tensor) else output[0]
        if only is not None:
            x = only(x)
        else:
            for step in steps:
                x = step(x)
        return x if isinstance(output, torch.Tensor) else _with_first(output, x)

    return module.register_forward_hook(hook)


def after_field(module: nn.Module, name: str, steps: Steps) -> Any:
    """Run steps on one field of a module's output."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x = getattr(output, name, None)
        if not isinstance(x, torch.Tensor):
            raise MappingError(f"{type(module).__name__} returned no `{name}`; call it with return_dict=True")
        for step in steps:
            x = step(x)
        output[name] = x
        return output

    return module.register_forward_hook(hook)


def before_out_proj(module: nn.Module, steps: Steps, heads: int, plan: AttentionPlan | None) -> Any:
    """Run steps on the input of an output projection, seen as (..., T, H, d_v)."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        flat = args[0]
        x = flat.unflatten(-1, (heads, -1))
        query, lse = plan.take_query(x.shape) if plan is not None else (None, None)
        for step in steps:
            x = step(x, query, lse)
        return (x.flatten(-2), *args[1:])

    return module.register_forward_pre_hook(hook)


def forget_query(module: nn.Module, plan: AttentionPlan) -> Any:
    """Before an attention module runs, drop what an earlier forward kept for gates and broke off without using."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        plan.query.clear()
        plan.lse.clear()

    return module.register_forward_pre_hook(hook)


def after_projection(
    module: nn.Module, projection: Projection, heads: int, width: int, steps: Steps, keep: AttentionPlan | None
) -> Any:
    """Run steps on one of q, k, v where it leaves its linear layer, seen as (..., T, H, d)."""
    fused = projection.index is not None

    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
        if fused:
            parts = rearrange(output, f"... {projection.pattern} -> ... n h d", h=heads, d=width)
            x = parts[..., projection.index, :, :]
        else:
            x = output.reshape(*output.shape[:-1], heads, output.shape[-1] // heads)
        if keep is not None:
            keep.query.append(x)
        if not steps:
            return None
        for step in steps:
            x = step(x)
        if not fused:
            return x.reshape(output.shape)
        parts = parts.clone()
        parts[..., projection.index, :, :] = x
        return rearrange(parts, f"... n h d -> ... {projection.pattern}")

    return module.register_forward_hook(hook)


def after_attention(module: nn.Module, edits: Sequence[tuple[Place, Tally, Callable[..., Any]]]) -> Any:
    """Run functions (keys, values) -> (keys, values) on the cache of a layer after its attention has run."""
    names = list(inspect.signature(module.forward).parameters)
    layer_index = getattr(module, "layer_idx", None)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        cache = cache_of(given)
        if cache is None or layer_index is None:
            return
        for place, tally, function in edits:
            half = "cross_attention_cache" if place.attention == "cross" else "self_attention_cache"
            layer = getattr(cache, half, cache).layers[layer_index]
            pruned = hasattr(layer, "whole")
            keys, values = layer.whole() if pruned else (layer.keys, layer.values)
            changed = function(keys, values)
            if changed is not None and pruned:
                raise InterventionError(f"{place}: what a pruned layer holds is shared and is not changed")
            if changed is not None:
                layer.keys, layer.values = keys, values = _checked(place, changed, keys, values)
            tally.count(keys.shape[0] * keys.shape[2])

    return module.register_forward_hook(hook, with_kwargs=True)


def after_model(model: nn.Module, steps: Steps) -> Any:
    """Run steps on the `logits` of a model's output, once a second stream's are in them."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if aside():
            return output
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise MappingError(f"{type(model).__name__} returned no `logits`; call it with return_dict=True")
        for step in steps:
            logits = step(logits)
        output["logits"] = logits
        return output

    return model.register_forward_hook(hook)


def _with_first(output: Any, x: torch.Tensor) -> Any:
    if isinstance(output, tuple):
        return (x, *output[1:])
    if isinstance(output, list):
        return [x, *output[1:]]
    output[next(iter(output.keys()))] = x
    return output


def _checked(place: Place, changed: Any, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    fits = (
        isinstance(changed, tuple)
        and len(changed) == 2
        and all(isinstance(t, torch.Tensor) and t.ndim == 4 for t in changed)
        and changed[0].shape[:3] == changed[1].shape[:3]
        and changed[0].shape[:2] == keys.shape[:2]
        and (changed[0].shape[3], changed[1].shape[3]) == (keys.shape[3], values.shape[3])
    )
    if not fits:
        raise InterventionError(
            f"{place}: the function must return (keys, values) like {list(keys.shape)} and {list(values.shape)}, "
            "of any common length"
        )
    return changed
