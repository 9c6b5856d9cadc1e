"""Inputs for any model, found by trying: layouts of a picture, and as many image tokens as the model asks for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..model_map import ModelMap

Inputs = dict[str, torch.Tensor]
WORDS = [0, 11, 12, 13, 14, 15, 16, 17]
SIDE = 4  # patches along each side of a picture that is given as patches


# How models say how many features they have for one image token.
_COMPLAINTS = (r"tokens:? *1, features:? *(\d+)", r"(\d+) feature vectors for", r"value tensor of shape \[(\d+), \d+\]")


class NoInputs(Exception):
    """No layout ran; the message has each with its error."""


def inputs_for(model: nn.Module, model_map: ModelMap, more: dict[str, Any] | None = None) -> Inputs:
    """The first inputs under which the model runs and reaches its text and its vision attention.

    Args:
        model: a tiny model.
        model_map: its map.
        more: values for named arguments of its forward, where the layouts tried here would not do.

    Raises:
        NoInputs: none ran.
    """
    wanted = {name for name in ("text", "vision") if _projections(model_map, name)}
    best: tuple[int, Inputs] | None = None
    errors = []
    for picture in _pictures(model):
        try:
            inputs, found = _settle(model, model_map, {**picture, **(more or {})})
        # Whatever a model raises about inputs that it was not made for.
        except Exception as error:
            errors.append(f"{ {k: tuple(v.shape) for k, v in picture.items()} }: {type(error).__name__}: {error}")
            continue
        if found >= wanted:
            return inputs
        errors.append(f"{ {k: tuple(v.shape) for k, v in picture.items()} }: reached {sorted(found)} only")
        if best is None or len(found) > best[0]:
            best = len(found), inputs
    if best is None:
        raise NoInputs("\n".join(errors))
    return best[1]


def _settle(model: nn.Module, model_map: ModelMap, given: Inputs) -> tuple[Inputs, set[str]]:
    """Run with more or fewer image tokens until the model is content; the inputs, and the towers that they reach."""
    counts = [1]
    for count in counts:
        inputs = {**_words(model, model_map, count), **given}
        try:
            return inputs, reached(model, model_map, inputs)
        except (ValueError, RuntimeError) as error:
            last = error
            counts += [n for n in _asked_for(str(error), count, model_map) if n not in counts]
    raise last


def _asked_for(message: str, count: int, model_map: ModelMap) -> list[int]:
    """Numbers of image tokens that a complaint about one token may mean: features, or their elements, are counted."""
    found = next((match for form in _COMPLAINTS if (match := re.search(form, message))), None)
    if found is None or count != 1:
        return []
    features = int(found[1])
    return [features, *(features // tower.width for tower in model_map.towers.values())]


def reached(model: nn.Module, model_map: ModelMap, inputs: Inputs) -> set[str]:
    """The towers some of whose output projections are called in one forward."""
    found: set[str] = set()
    handles = []
    for name in model_map.towers:
        for path in _projections(model_map, name):
            hook = lambda module, args, name=name: found.add(name)  # noqa: E731
            handles.append(model.get_submodule(path).register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _projections(model_map: ModelMap, name: str) -> list[str]:
    if name not in model_map.towers:
        return []
    return [
        layer.attention.out_proj
        for layer in model_map.towers[name].layers
        if layer.attention and layer.attention.kind == "softmax" and layer.attention.out_proj
    ]


def _arguments(model: nn.Module) -> set[str]:
    """What the forward takes by name; where it passes the picture on unnamed, what the part takes that encodes it."""
    names = set(inspect.signature(model.forward).parameters)
    for part in model.modules() if "pixel_values" not in names and "kwargs" in names else ():
        taken = set(inspect.signature(part.forward).parameters)
        if {"input_ids", "pixel_values"} <= taken:
            return names | taken
    return names


def _words(model: nn.Module, model_map: ModelMap, images: int) -> Inputs:
    """Token ids with a picture's place in them, and whatever the forward takes along with ids."""
    names = _arguments(model)
    token = image_token(model, model_map)
    ids = torch.tensor([[*WORDS[:2], *([token] * images if token is not None else []), *WORDS[2:]]])
    is_image = (ids == token).long() if token is not None else torch.zeros_like(ids)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": is_image,
        "token_type_ids": is_image,
        "image_embeds_position_mask": is_image,
        "image_attention_mask": torch.ones(*ids.shape, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(*ids.shape, 1, _tiles(_vision_config(model.config)), dtype=torch.long),
        "bbox": torch.linspace(0, 0.9, ids.shape[1])[None, :, None].repeat(1, 1, 4),
        "protein_input_ids": ids,
        "protein_attention_mask": torch.ones_like(ids),
        "decoder_input_ids": torch.tensor([WORDS[:6]]),
        "qformer_input_ids": torch.tensor([WORDS[:6]]),
        "qformer_attention_mask": torch.ones(1, 6, dtype=torch.long),
    }
    return {name: value for name, value in made.items() if name in names}


def image_token(model: nn.Module, model_map: ModelMap) -> int | None:
    """The id that stands for a picture's features."""
    if model_map.image_token_id is not None:
        return model_map.image_token_id
    configs = [model.config, *(getattr(model.config, name, None) for name in getattr(model.config, "sub_configs", ()))]
    names = ("image_token_id", "image_token_index", "video_token_index")
    found = [getattr(config, name, None) for config in configs for name in names]
    if "image_embeds_position_mask" in _arguments(model):
        found.append(WORDS[-1] + 1)  # any id: the mask says where the picture is
    return next((value for value in found if isinstance(value, int)), None)


def _vision_config(config: Any) -> dict[str, Any]:
    """The fields of the part of a config that has patches or pixels, the top's own last."""
    data = config.to_dict()
    found = [value for key, value in data.items() if isinstance(value, dict) and _is_vision(key, value)]
    nested = [
        inner for value in found for key, inner in value.items() if isinstance(inner, dict) and _is_vision(key, inner)
    ]
    fields: dict[str, Any] = {}
    for part in [*found, *nested, data]:
        for key, value in part.items():
            fields.setdefault(key, value)
    return fields


def _is_vision(key: str, value: dict[str, Any]) -> bool:
    if not isinstance(key, str) or "text" in key or "audio" in key:
        return False
    return any("patch" in str(name) or name == "image_size" for name in value)


def _tiles(fields: dict[str, Any]) -> int:
    return _one(fields.get("max_num_tiles"), 1)


def _one(value: Any, default: int) -> int:
    if isinstance(value, list | tuple):
        value = value[0] if value else default
    return value if isinstance(value, int) and value > 0 else default


def _pictures(model: nn.Module) -> Iterator[Inputs]:
    """One picture in every layout that models take, likelier ones first."""
    names, fields = _arguments(model), _vision_config(model.config)
    patch = _one(fields.get("patch_size"), 16)
    size = _one(fields.get("image_size"), patch * SIDE)
    channels = _one(fields.get("num_channels", fields.get("in_channels")), 3)
    frames = _one(fields.get("temporal_patch_size", fields.get("patch_temporal")), 1)
    tiles = _tiles(fields)
    for layout in _layouts(patch, size, channels, frames, tiles):
        if set(layout) <= names:
            yield layout
            if "image_sizes" in names:
                yield {"image_sizes": torch.tensor([[size, size]]), **layout}


def _layouts(patch: int, size: int, channels: int, frames: int, tiles: int) -> Iterator[Inputs]:
    torch.manual_seed(0)
    count, area = SIDE * SIDE, channels * patch * patch
    grid, sides = torch.tensor([[1, SIDE, SIDE]]), torch.tensor([[SIDE, SIDE]])
    flat = [torch.randn(count, area * frames), torch.randn(count, area)]
    flat += [torch.randn(count, channels, patch, patch), torch.randn(1, count, channels, patch, patch)]
    flat += [torch.randn(count, 2 * patch, 2 * patch, channels)]
    for pixels in flat:
        yield {"pixel_values": pixels, "image_grid_thw": grid}
        yield {"pixel_values": pixels, "image_grid_thw": grid, "image_merge_sizes": torch.tensor([2])}
    for pixels in flat:
        yield {"pixel_values": pixels, "image_grid_hw": sides}
    batched = torch.randn(1, count, area)
    seen = torch.ones(1, count, dtype=torch.long)
    yield {"pixel_values": batched, "spatial_shapes": sides, "pixel_attention_mask": seen}
    places = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy"), -1).reshape(1, count, 2)
    yield {"pixel_values": batched, "image_position_ids": places}
    yield {"pixel_values": torch.randn(1, channels, patch, count * patch), "target_sizes": sides}
    rows = torch.cat([places + 1.0, batched], dim=-1)
    yield {"flattened_patches": rows}
    yield {"flattened_patches": rows, "attention_mask": seen}
    yield {"pixel_values_videos": torch.randn(1, 2, channels, size, size)}
    one = torch.randn(1, channels, size, size)
    yield {"pixel_values": one}
    yield {"pixel_values": one[None]}
    yield {"pixel_values": one[None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    yield {"pixel_values": one, "high_res_pixel_values": one}
    shape = {
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(1, 1, tiles).long(),
    }
    yield {"pixel_values": one[None, None].repeat(1, 1, tiles, 1, 1, 1), **shape}
    # A view of the whole picture and its two halves.
    yield {"pixel_values": one[None].repeat(1, 3, 1, 1, 1)}
    yield {}
