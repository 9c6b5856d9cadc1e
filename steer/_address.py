"""From a Site to the layers and heads of one model, with every address checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InterventionError, MappingError, unknown_name
from .model_map import Attention, Layer, ModelMap, Tower
from .sites import Heads, Layers, Site


@dataclass(frozen=True)
class Target:
    """One layer that a site names, its place among the layers of the site, and its attention where that is meant."""

    tower: Tower
    layer: Layer
    place: int
    count: int
    attention: Attention | None
    heads: tuple[int, ...] | None


def resolve(site: Site, model_map: ModelMap) -> list[Target]:
    """Every layer that the site names, in order.

    With `layers="all"`, layers without the attention in question are passed over; a layer asked for by number that has
    none is an error.

    Raises:
        UnknownNameError: no such tower, layer or head.
        MappingError: the tower has nothing of the kind asked for.
    """
    tower = model_map.tower(site.tower)
    chosen = _layers(site.layers, tower)
    needs = site.name in _OF_ATTENTION
    if needs:
        kept = [layer for layer in chosen if _fits(site, _mixer(site, layer))]
        if len(kept) < len(chosen) and (site.layers != "all" or not kept):
            missing = next(layer for layer in chosen if layer not in kept)
            raise MappingError(_no_attention(site, tower, missing, kept))
        chosen = kept
    targets = []
    for place, layer in enumerate(chosen):
        mixer = _mixer(site, layer) if needs else None
        heads = _heads(site.heads, _head_count(site, mixer), site, layer) if mixer is not None else None
        targets.append(Target(tower, layer, place, len(chosen), mixer, heads))
    return targets


_OF_ATTENTION = ("attn_out", "head_q", "head_k", "head_v", "head_out", "attention", "key_bias", "kv_prefix", "cache")


def _mixer(site: Site, layer: Layer) -> Attention | None:
    return layer.cross_attention if site.attention == "cross" else layer.attention


def _fits(site: Site, mixer: Attention | None) -> bool:
    if mixer is None:
        return False
    if site.name == "attn_out":
        return True
    if site.name == "head_out":
        return mixer.out_proj is not None and mixer.num_heads is not None
    return mixer.kind == "softmax"


def _head_count(site: Site, mixer: Attention) -> int | None:
    return mixer.num_kv_heads if site.name in ("head_k", "head_v", "kv_prefix") else mixer.num_heads


def _no_attention(site: Site, tower: Tower, layer: Layer, kept: Sequence[Layer]) -> str:
    mixer = _mixer(site, layer)
    what = f"{site.attention}-attention"
    found = "none" if mixer is None else f"a {mixer.kind} mixer at {mixer.path}"
    having = [k.index for k in tower.layers if _fits(site, _mixer(site, k))]
    return (
        f"{site.name!r} needs {what} with heads; layer {layer.index} of the {tower.name} tower has {found}; "
        f"layers that have it: {having if having else 'none'}"
    )


def _layers(asked: Layers, tower: Tower) -> list[Layer]:
    if isinstance(asked, str):
        if asked != "all":
            raise InterventionError(f'layers must be "all", a number or a list of numbers, got {asked!r}')
        return list(tower.layers)
    wanted = [asked] if isinstance(asked, int) else list(asked)
    if not wanted:
        raise InterventionError(f"layers is empty; the {tower.name} tower has {len(tower.layers)}")
    return [tower.layers[_number("layer", i, len(tower.layers), f"{tower.name} tower")] for i in wanted]


def _heads(asked: Heads, count: int | None, site: Site, layer: Layer) -> tuple[int, ...] | None:
    if isinstance(asked, str):
        if asked != "all":
            raise InterventionError(f'heads must be "all", a number or a list of numbers, got {asked!r}')
        return None
    if count is None:
        raise MappingError(f"how many heads {layer.path} has is not known; heads cannot be chosen there")
    wanted = [asked] if isinstance(asked, int) else list(asked)
    if not wanted:
        raise InterventionError(f"heads is empty; layer {layer.index} has {count}")
    heads = tuple(_number("head", i, count, f"layer {layer.index} at {site.name}") for i in wanted)
    if len(set(heads)) < len(heads):
        raise InterventionError(f"heads {list(heads)} names a head twice")
    return heads


def _number(what: str, asked: object, count: int, where: str) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int) or not -count <= asked < count:
        raise unknown_name(what, asked, range(count), f"in the {where}")
    return asked % count
