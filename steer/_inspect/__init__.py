"""Map a vision-language model: `inspect_model`."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..errors import MappingError
from ..model_map import Layer, ModelMap, Tower
from .attention import Mixers
from .layers import read_layer
from .modules import CONVS, is_list, is_norm, linear_sizes
from .stacks import Stack, find_stacks, loose_mixers
from .streams import find_streams
from .towers import Group, name_groups

__all__ = ["inspect_model"]


def inspect_model(model: nn.Module) -> ModelMap:
    """Find the towers, layers and attention of any vision-language model.

    Runs no weights and leaves nothing on the model; works on any device, meta included.

    Raises:
        MappingError: no stack of blocks was found.
    """
    stacks = find_stacks(model)
    if not stacks:
        raise MappingError(f"no stack of blocks with attention was found in {type(model).__name__}")
    mixers = Mixers(model)
    groups = name_groups(model, [_group(model, stack, mixers) for stack in stacks])
    towers: dict[str, Tower] = {}
    for group in groups:
        count = 1 + sum(tower.kind == group.kind for tower in towers.values())
        name = group.kind if count == 1 else f"{group.kind}_{count}"
        layers = tuple(replace(layer, index=index) for index, layer in enumerate(group.layers))
        towers[name] = Tower(name, group.path, group.width, layers, _embeddings(model, group, groups))
    config = getattr(model, "config", None)
    notes = mixers.notes + [f"attention outside every stack: {path}" for path in loose_mixers(model, stacks)]
    both = {"text", "vision"} <= set(towers) and not _writes(model)
    return ModelMap(
        model_class=type(model).__name__,
        model_type=getattr(config, "model_type", None) or "",
        towers=towers,
        logits=_logits(model),
        image_token_id=_image_token(config),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        notes=tuple(notes),
        streams=find_streams(model)[0] if both else None,
    )


def _group(model: nn.Module, stack: Stack, mixers: Mixers) -> Group:
    layers = tuple(read_layer(model, index, block, mixers) for index, block in enumerate(stack.blocks))
    return Group("", stack.path, _width(model, stack, layers), layers)


def _width(model: nn.Module, stack: Stack, layers: tuple[Layer, ...]) -> int:
    """What the first layer gives back to the residual stream, else the size of its first norm."""
    for layer in layers[:1]:
        for attention in (layer.attention, layer.cross_attention):
            if attention is not None and attention.out_proj:
                return linear_sizes(model.get_submodule(attention.out_proj))[1]  # type: ignore[index]
    block = stack.blocks[0].module
    norms = [next(module.parameters()).numel() for module in block.modules() if is_norm(module)]
    sizes = [size[0] for module in block.modules() if (size := linear_sizes(module))]
    return next(iter(norms + sizes), 0)


def _embeddings(model: nn.Module, group: Group, groups: list[Group]) -> str | None:
    """The one module beside a stack that embeds its input; None where the sequence is put together elsewhere."""
    if group.kind != "vision" and _logits(model) is not None:
        return None
    holder = group.path.rpartition(".")[0]
    while holder and not any(other is not group and f"{other.path}.".startswith(f"{holder}.") for other in groups):
        found = [
            f"{holder}.{name}"
            for name, child in model.get_submodule(holder).named_children()
            if not is_list(child) and not f"{group.path}.".startswith(f"{holder}.{name}.") and _is_embedding(child)
        ]
        if found:
            return found[0] if len(found) == 1 else None
        holder = holder.rpartition(".")[0]
    return None


def _is_embedding(module: nn.Module) -> bool:
    return any(isinstance(child, (nn.Embedding, *CONVS)) for child in module.modules())


def _writes(model: nn.Module) -> bool:
    return bool(getattr(model, "can_generate", lambda: False)())


def _logits(model: nn.Module) -> str | None:
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except Exception:  # a model without a head says so in its own way
        head = None
    if head is not None:
        return next((name for name, module in model.named_modules() if module is head), None)
    tables = {(m.embedding_dim, m.num_embeddings) for m in model.modules() if isinstance(m, nn.Embedding)}
    heads = [name for name, module in model.named_modules() if linear_sizes(module) in tables]
    return heads[0] if len(heads) == 1 else None


def _image_token(config: object) -> int | None:
    for name in ("image_token_id", "image_token_index", "media_token_id", "im_patch_id"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    return None
