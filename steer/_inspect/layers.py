"""Read one block: its attention, cross-attention and MLP, as model_map's Layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..model_map import Attention, Layer
from .attention import Mixers
from .modules import is_list, is_norm, is_plain
from .stacks import Block
from .wiring import Addition, Wiring, read_wiring


def read_layer(model: nn.Module, index: int, block: Block, mixers: Mixers) -> Layer:
    """The Layer for one block; attention modules of one build are probed once, in `mixers`."""
    paths = block.softmax + [path for path, _ in block.other]
    wiring = read_wiring(block.module, block.path, paths)
    attention, cross = None, None
    for path in block.softmax:
        found, is_cross = mixers.softmax(path, wiring.states.get(path, ()), block)
        if is_cross or (attention is not None and cross is None):
            cross = found
        elif attention is None:
            attention = found
    for path, kind in block.other:
        if attention is None:
            attention = mixers.other(path, kind)
    layer = Layer(index=index, path=block.path, attention=attention, cross_attention=cross)
    return _branches(layer, block, wiring)


def _branches(layer: Layer, block: Block, wiring: Wiring) -> Layer:
    """Add the modules whose output each branch adds to the residual stream."""
    named: dict[str, Any] = {}
    mlp = None
    mixers = block.softmax + [path for path, _ in block.other]
    for name, attention in (("attn_out", layer.attention), ("cross_attn_out", layer.cross_attention)):
        if attention is not None:
            addition = next((item for item in wiring.additions if attention.path in item.through), None)
            named[name] = addition.last if addition and addition.last else _child_holding(block, attention)
    for addition in wiring.additions:
        if not addition.through & set(mixers) and (holder := _mlp_of(block, addition)):
            mlp, named["mlp_out"] = holder, addition.last or holder
    if mlp is None and (mlp := _heaviest(block, mixers)):
        named["mlp_out"] = mlp
    return replace(layer, mlp=mlp, **named)


def _child_holding(block: Block, attention: Attention) -> str:
    """The child of the block that the attention is in, or is."""
    below = attention.path[len(block.path) :].strip(".").split(".")
    depth = 2 if len(below) > 1 and is_list(block.module._modules.get(below[0]) or block.module) else 1
    if is_list(block.module) or below == [""]:
        depth = 1
    return ".".join([block.path, *[part for part in below[:depth] if part]])


def _children(block: Block) -> list[tuple[str, nn.Module]]:
    """The parts of a block: its children, and those of a list that it keeps them in."""
    parts = []
    for name, child in block.module.named_children():
        if is_list(child) and not isinstance(child, nn.Sequential):
            parts += [(f"{block.path}.{name}.{key}", inner) for key, inner in child.named_children()]
        else:
            parts.append((f"{block.path}.{name}", child))
    return parts


def _weighty(module: nn.Module) -> bool:
    return not is_plain(module) and not is_norm(module)


def _mlp_of(block: Block, addition: Addition) -> str | None:
    """The part of the block with weights that this addition came from last."""
    parts = [path for path, child in _children(block) if _weighty(child) and _touches(path, addition.through)]
    last = [path for path in parts if addition.last and f"{addition.last}.".startswith(f"{path}.")]
    return next(reversed(last or parts), None)


def _touches(path: str, through: frozenset[str]) -> bool:
    return any(passed == path or passed.startswith(f"{path}.") for passed in through)


def _heaviest(block: Block, mixers: list[str]) -> str | None:
    """Without a readable forward: the part with most weights beside the mixers."""
    sizes = {
        path: sum(parameter.numel() for parameter in child.parameters())
        for path, child in _children(block)
        if _weighty(child) and not any(mixer == path or mixer.startswith(f"{path}.") for mixer in mixers)
    }
    return max(sizes, key=sizes.__getitem__) if sizes and block.path not in mixers else None
