"""Pruning a cache by hand: which layers can be, and a cache that holds what was chosen."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from ..errors import InterventionError
from ._helping import cache_layer, masks_of, self_attentions
from ._state import copied
from ._whole import shares_of
from .kept import pick
from .layer import KeptLayer


def prunable(model: nn.Module, cache: Any) -> dict[int, int]:
    """The layers whose cache can be pruned, by their index in the text tower, with their place in the cache.

    These are softmax self-attentions that keep every token for themselves. Sliding windows, linear and state-space
    layers, cross-attention, layers whose keys another layer reads, and attention that learns a bias by distance, which
    it works out from the number of keys, are left as they are.
    """
    from ..session import map_of

    found: dict[int, int] = {}
    for index, mixer in self_attentions(map_of(model)).items():
        module = model.get_submodule(mixer.path)
        place = cache_layer(cache, module)
        if place is None or type(place[0][place[1]]) not in (DynamicLayer, KeptLayer) or stays_whole(module):
            continue
        found[index] = place[1]
    return found


def prune(model: nn.Module, cache: Any, keep: Mapping[int, torch.Tensor]) -> Any:
    """A cache that holds only some tokens of some layers; the given one is not changed.

    It goes on where the given one would have: the next token's position is what it was. Run the model on it inside
    `steer.memory.masks(model)`.

    Args:
        model: what the cache belongs to.
        cache: transformers' dynamic cache after a forward.
        keep: bool (B, H_kv, S) for each layer of the text tower to be pruned; others keep everything.

    Raises:
        InterventionError: a layer cannot be pruned, or a selection does not fit.
    """
    places = prunable(model, cache)
    missing = sorted(set(keep) - set(places))
    if missing:
        raise InterventionError(
            f"layers {missing} cannot be pruned: they are not softmax self-attentions with a cache of their own that "
            f"keeps every token; those of this model are {sorted(places)}"
        )
    made = forked(cache)
    layers = getattr(made, "self_attention_cache", made).layers
    shares = shares_of(model)
    for index, chosen in keep.items():
        if index in shares and chosen.shape[1] == shares[index].total:
            chosen = shares[index].own(chosen, 1)
        if not bool(chosen.all()) or isinstance(layers[places[index]], KeptLayer):
            layers[places[index]] = kept_layer(layers[places[index]], chosen, masks_of(model))
    return made


def kept_layer(layer: Any, keep: torch.Tensor, helper: Any) -> KeptLayer:
    """A layer with only some of its keys; `keep` is bool (B, H_kv, S)."""
    if isinstance(layer, KeptLayer):
        return layer.keep(keep)
    slots = torch.arange(layer.keys.shape[2], device=layer.keys.device)[None, None]
    return KeptLayer(pick(layer.keys, layer.values, slots, keep), layer.get_seq_length(), helper)


def forked(cache: Any) -> Any:
    """A cache that goes on from the same state and never writes to it."""
    made = copy.copy(cache)
    if hasattr(cache, "self_attention_cache"):
        made.self_attention_cache = forked(cache.self_attention_cache)
        made.cross_attention_cache = forked(cache.cross_attention_cache)
        made.is_updated = dict(cache.is_updated)
        return made
    made.layers = [copied(layer) for layer in cache.layers]
    return made


def stays_whole(module: nn.Module) -> bool:
    """Whether an attention's keys may not be dropped: others read them, or their number says how far they are."""
    return _lends(module) or _by_distance(module)


def _by_distance(module: nn.Module) -> bool:
    """Whether it adds a learned bias for each distance between query and key, as T5 does."""
    return any(hasattr(module, name) for name in ("relative_attention_bias", "has_relative_attention_bias"))


def _lends(module: nn.Module) -> bool:
    """Whether other layers read this one's keys."""
    modes = getattr(getattr(module, "config", None), "kv_sharing_modes", None)
    stores = modes is not None and modes[module.layer_idx] is not None
    return stores or bool(getattr(module, "store_full_length_kv", False))
