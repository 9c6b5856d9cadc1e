"""A saved memory on a model again."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from ..errors import FileFormatError, FingerprintError
from ._fits import check_fits, dtype_of
from ._helping import self_attentions
from ._states import moved, unpack
from .files import read
from .memory import Memory


def load(folder: str | os.PathLike[str], model: Any, *, device: Any = None, processor: Any = None) -> Memory:
    """See `Memory.load`."""
    saved = read(folder)
    record, tensors = saved.record, saved.tensors
    check_fits(record, model, processor)
    cast = _casts(record["dtype"], model)
    fresh = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    if record["layers"] and len(record["layers"]) != len(fresh):
        raise FingerprintError(f"this memory has {len(record['layers'])} layers of cache, this model {len(fresh)}")
    places = {int(i): place for i, place in record["places"].items()}
    _check_places(places, model)
    homes = _homes(model, len(fresh)) if device is None else [torch.device(device)] * len(fresh)
    layers = []
    for place, data in enumerate(record["layers"]):
        try:
            if place in places.values():
                layers.append(saved.layer(place, homes[place], cast))
            else:
                layers.append(unpack(fresh[place], data, tensors, homes[place], cast))
        except (FileFormatError, FingerprintError) as error:
            raise type(error)(f"layer {place} of the memory in {folder} does not fit: {error}") from error
    where = model.device if device is None else device
    tokens, mask, images = (moved(tensors[name], where, {}) for name in ("tokens", "mask", "images"))
    deltas = tensors.get("rope_deltas")
    made = Memory(
        record["model_class"],
        record["fingerprint"],
        tuple(layers),
        places,
        record["length"],
        tokens,
        mask,
        images,
        None if deltas is None else moved(deltas, where, {}),
        {name: tuple(shape) for name, shape in record["shapes"].items()},
        record["info"],
    )
    return made.bind(model)


def _check_places(places: dict[int, int], model: nn.Module) -> None:
    """That each layer of the text tower has the place in the cache that its module asks for."""
    from ..session import map_of

    mixers = self_attentions(map_of(model))
    for index, place in places.items():
        module = None if index not in mixers else model.get_submodule(mixers[index].path)
        if getattr(module, "layer_idx", None) != place:
            raise FileFormatError(
                f"place {place} of this memory's cache is not that of layer {index} of the text tower"
            )


def _casts(dtype: str, model: Any) -> dict[torch.dtype, torch.dtype]:
    """Which dtype becomes which, where the model is loaded in another one than the memory was made in."""
    made, here = getattr(torch, dtype, None), model.dtype
    if not isinstance(made, torch.dtype) or not made.is_floating_point:
        raise FileFormatError(f"it has dtype {dtype!r:.40}, which is no floating-point dtype")
    if made == here:
        return {}
    warnings.warn(
        f"this memory was made in {dtype} and is cast to the model's {dtype_of(model)}; answers, and its certificate "
        "where it has one, may differ a little",
        stacklevel=4,
    )
    return {made: here}


def _homes(model: nn.Module, count: int) -> list[torch.device]:
    """Where each layer of the cache lives: with the module that it belongs to."""
    from ..session import map_of

    homes: list[torch.device] = [model.device] * count  # type: ignore[list-item]
    for layer in map_of(model).tower("text").layers:
        for mixer in (layer.attention, layer.cross_attention):
            if mixer is None:
                continue
            module = model.get_submodule(mixer.path)
            index, first = getattr(module, "layer_idx", None), next(module.parameters(), None)
            if isinstance(index, int) and index < count and first is not None and not first.is_meta:
                homes[index] = first.device
    return homes
