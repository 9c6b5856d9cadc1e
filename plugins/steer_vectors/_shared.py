"""What the methods of this package share: layers, and heads by the shape of their attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import steer
from steer.model_map import Attention

Layers = tuple[int, ...] | Literal["all"]


def layers_with(model_map: steer.ModelMap, site: str, layers: Layers) -> list[int]:
    """The layers of the text tower that are meant; "all" leaves out those without what the site names."""
    found = model_map.tower().layers
    if layers != "all":
        return list(layers)
    return [layer.index for layer in found if site != "mlp_out" or layer.mlp_out or layer.mlp]


def softmax_attention(model_map: steer.ModelMap, index: int) -> Attention:
    """The softmax attention of a layer of the text tower.

    Raises:
        UnknownNameError: there is no such layer.
        SteerError: the layer has none.
    """
    layers = model_map.tower().layers
    if isinstance(index, bool) or not isinstance(index, int) or not -len(layers) <= index < len(layers):
        raise steer.errors.unknown_name("layer", index, range(len(layers)), "in the text tower")
    attention = layers[index].attention
    if attention is None or attention.kind != "softmax":
        having = [one.index for one in layers if one.attention and one.attention.kind == "softmax"]
        raise steer.SteerError(
            f"layer {index} of {model_map.model_class} has no softmax attention; layers that have it: "
            f"{having if having else 'none'}"
        )
    return attention


@dataclass(frozen=True)
class Heads:
    """Layers whose attention has one shape, so that their parameters stack into one tensor.

    Attributes:
        layers: L of them.
        heads, kv_heads: H query heads and H_kv key-value heads in each.
        head_dim, value_dim: d of queries and keys, d_v of values.
        suffix: of tensor names; empty where the whole tower has one shape.
    """

    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    suffix: str = ""


def head_groups(model_map: steer.ModelMap, layers: Layers) -> list[Heads]:
    """The layers with softmax attention, by the shape of their heads.

    Raises:
        UnknownNameError: a layer that does not exist.
        SteerError: none of the layers, or one that was chosen, has no softmax attention.
    """
    groups: dict[tuple[int, int, int, int], list[int]] = {}
    found = [one.index for one in model_map.tower().layers if one.attention and one.attention.kind == "softmax"]
    for index in found if layers == "all" else layers:
        attention = softmax_attention(model_map, index)
        heads = attention.num_heads or 1
        head_dim = attention.head_dim or attention.value_dim or 0
        shape = (heads, attention.num_kv_heads or heads, head_dim, attention.value_dim or head_dim)
        groups.setdefault(shape, []).append(index)
    if not groups:
        raise steer.SteerError(f"no layer with softmax attention in {model_map.model_class} was chosen: {layers}")
    one = len(groups) == 1
    return [
        Heads(tuple(found), *shape, suffix="" if one else f".{i}") for i, (shape, found) in enumerate(groups.items())
    ]
