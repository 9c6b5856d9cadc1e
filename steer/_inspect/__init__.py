"""Map a vision-language model: `inspect_model`."""

from __future__ import annotations

from torch import nn

from ..errors import MappingError
from ..model_map import ModelMap, Tower
from .attention import Mixers
from .layers import read_layer
from .modules import linear_sizes
from .stacks import find_stacks
from .towers import Group, group_stacks

__all__ = ["inspect_model"]


def inspect_model(model: nn.Module) -> ModelMap:
    """Find the towers, layers and attention of any vision-language model.

    Runs no weights and leaves nothing on the model; works on any device, meta included.

    Raises:
        MappingError: no stack of blocks was found.
    """
    stacks = find_stacks(model)
    if not stacks:
        raise MappingError(f"no stack of attention blocks was found in {type(model).__name__}")
    mixers = Mixers(model)
    towers: dict[str, Tower] = {}
    for group in group_stacks(model, stacks):
        name = group.kind
        count = 1
        while name in towers:
            count += 1
            name = f"{group.kind}_{count}"
        towers[name] = _read_tower(model, name, group, mixers)
    config = getattr(model, "config", None)
    return ModelMap(
        model_class=type(model).__name__,
        model_type=getattr(config, "model_type", ""),
        towers=towers,
        logits=_logits(model),
        image_token_id=_image_token(config),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _read_tower(model: nn.Module, name: str, group: Group, mixers: Mixers) -> Tower:
    layers = tuple(read_layer(model, index, block, mixers) for index, block in enumerate(group.blocks))
    return Tower(name, group.path, _width(model, layers), layers)


def _width(model: nn.Module, layers) -> int:  # type: ignore[no-untyped-def]
    for layer in layers:
        attention = layer.attention or layer.cross_attention
        if attention is not None and attention.out_proj:
            return linear_sizes(model.get_submodule(attention.out_proj))[1]  # type: ignore[index]
    return 0


def _logits(model: nn.Module) -> str | None:
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except Exception:  # a model without a head says so in its own way
        return None
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None


def _image_token(config: object) -> int | None:
    for name in ("image_token_id", "image_token_index", "media_token_id", "im_patch_id"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    return None
