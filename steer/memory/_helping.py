"""Giving each layer its own mask: transformers makes one for all layers of a kind, and pruned layers differ.

A light hook in front of each self-attention looks whether the cache's layer is a `KeptLayer`. If it is, the mask that
the module was given, made for the whole sequence, is replaced by its columns at the slots that this layer kept.
Whatever the mask says (causal, padding, windows, pictures seen both ways) is thereby said of the right keys. A cache of
any other kind passes untouched. Modules outside transformers' attention registry are reached in the same way.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .._caches import cache_of
from .._sharding import local_map
from ..model_map import Attention, ModelMap
from .layer import KeptLayer

STASH = "_steer_cache"


class Masks:
    """The hooks of one model, there as long as somebody needs them."""

    def __init__(self) -> None:
        self._users = 0
        self._handles: list[Any] = []

    @property
    def active(self) -> bool:
        """Whether layers are given their own masks now."""
        return self._users > 0

    def begin(self, model: nn.Module, model_map: ModelMap) -> None:
        """Count a user in."""
        if not self._users:
            for mixer in local_map(model, self_attentions(model_map)).values():
                module = model.get_submodule(mixer.path)
                hook = functools.partial(
                    _before, list(inspect.signature(module.forward).parameters), mixer.num_heads or 1
                )
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                self._handles.append(module.register_forward_hook(_after, always_call=True))
        self._users += 1

    def end(self) -> None:
        """Count a user out."""
        self._users -= 1
        while not self._users and self._handles:
            self._handles.pop().remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Masks:
        # a copied cache is helped by the hooks that are on the model
        return self


_of_models: weakref.WeakKeyDictionary[nn.Module, Masks] = weakref.WeakKeyDictionary()


def masks_of(model: nn.Module) -> Masks:
    """The one helper of a model, whether it is active or not."""
    return _of_models.setdefault(model, Masks())


@contextmanager
def masks(model: nn.Module) -> Iterator[Masks]:
    """Let this model run on caches whose layers differ, for as long as the block lasts.

    `Memory.bind` and a session that prunes do the same; this is for caches that you made yourself with `prune`.
    """
    from ..session import map_of

    helper = masks_of(model)
    helper.begin(model, map_of(model))
    try:
        yield helper
    finally:
        helper.end()


def self_attentions(model_map: ModelMap) -> dict[int, Attention]:
    """The softmax self-attentions of the tower that writes, by layer."""
    layers = model_map.tower("text").layers
    found = {layer.index: layer.attention for layer in layers if layer.attention is not None}
    return {index: mixer for index, mixer in found.items() if mixer.kind == "softmax"}


def cache_layer(cache: Any, module: nn.Module) -> tuple[list[Any], int] | None:
    """Where a self-attention's keys are kept: the cache's layers and the place among them."""
    own = getattr(cache, "self_attention_cache", cache)
    layers, index = getattr(own, "layers", None), getattr(module, "layer_idx", None)
    if layers is None or index is None or index >= len(layers):
        return None
    return layers, index


def _before(
    names: list[str], heads: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    given = dict(zip(names, args, strict=False)) | kwargs if args else kwargs
    cache = cache_of(given)
    module.__dict__[STASH] = cache
    place = None if cache is None else cache_layer(cache, module)
    layer = None if place is None else place[0][place[1]]
    if not isinstance(layer, KeptLayer):
        return None
    hidden = given.get("hidden_states")
    if hidden is None:
        hidden = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.ndim == 3)
    name = getattr(getattr(module, "config", None), "_attn_implementation", None) or ""
    mask = layer.mask(given.get("attention_mask"), hidden.shape[1], heads, hidden.shape[0], "flash" in name)
    if "attention_mask" in kwargs or "attention_mask" not in names[: len(args)]:
        return args, {**kwargs, "attention_mask": mask}
    place_of = names.index("attention_mask")
    return (*args[:place_of], mask, *args[place_of + 1 :]), kwargs


def _after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    module.__dict__.pop(STASH, None)
