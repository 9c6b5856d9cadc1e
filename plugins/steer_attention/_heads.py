"""How heads are written in this package, once for every method: what a field takes, and what it means in a model.

A method keeps its field `heads: Heads` and calls `as_pairs` in `__post_init__`, which makes one plain form of whatever
was given. In `interventions` it calls `chosen`, which checks that form against the model and sorts it by layer.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import steer
from steer.errors import InterventionError, UnknownNameError
from steer.sites import Site

Heads = tuple[tuple[int, int], ...] | Literal["all"]
"""The plain form: (layer, head) pairs, query heads counted from 0, or all of them."""

TOP = 10
"""How many heads are taken of a head map that was given whole."""

FORMS = (
    'heads are "all", (layer, head) pairs such as ((3, 0), (3, 5)), the heads of each layer such as {3: [0, 5]}, or a '
    f"head map, whose {TOP} top heads are taken"
)


def as_pairs(heads: Any, method: str) -> Heads:
    """One plain form of every way in which heads are written.

    Args:
        heads: "all"; (layer, head) pairs; a mapping from layer to a head or some heads; or anything
            with a method `top(k)` that gives pairs, such as a `steer.HeadMap`.
        method: name of the method, for errors.

    Returns:
        "all", or the pairs in the order in which they were written, each once. Negative numbers stay: what they mean
        depends on the model.

    Raises:
        InterventionError: it is none of these, is empty, or names a head twice; the message quotes what was given.
    """
    if isinstance(heads, str) and heads == "all":
        return "all"
    given = heads.top(TOP) if callable(getattr(heads, "top", None)) else heads
    if isinstance(given, Mapping):
        given = [(layer, head) for layer, some in given.items() for head in _several(some)]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InterventionError(f"{method}: {FORMS}; got {heads!r:.100}")
    pairs = tuple(_pair(one, method) for one in given)
    if not pairs:
        raise InterventionError(f"{method}: no heads were given; {FORMS}")
    for i, pair in enumerate(pairs):
        if pair in pairs[:i]:
            raise InterventionError(f"{method}: head {pair[1]} of layer {pair[0]} is in heads twice")
    return pairs


@dataclass(frozen=True)
class Chosen:
    """Heads of one layer.

    Attributes:
        layer: its number in the tower.
        heads: their numbers, from 0.
        count: how many heads the layer has.
        places: for each of `heads` its place among all that were asked for, to look up parameters that are kept in the
            order of the field. With "all" that is layer after layer, head after head.
    """

    layer: int
    heads: tuple[int, ...]
    count: int
    places: tuple[int, ...]


def chosen(heads: Heads, model_map: steer.ModelMap, method: str, site: str = "head_out") -> list[Chosen]:
    """What heads mean in a model: by layer, in the model's order.

    Args:
        heads: as `as_pairs` gives them.
        model_map: of the model.
        method: name of the method, for errors.
        site: where they will be changed; layers without it are passed over by "all".

    Raises:
        UnknownNameError: a layer or head that does not exist, or a layer without attention at that site; the message
            says how many there are and which is nearest.
        MappingError: the model has no layer with that site.
        InterventionError: two pairs mean one head, as (-1, 0) and (3, 0) in a model of 4 layers.
    """
    counts = {one.layer.index: one.attention.num_heads or 1 for one in model_map.targets(Site(site)) if one.attention}
    if heads == "all":
        pairs = [(layer, head) for layer, count in counts.items() for head in range(count)]
    else:
        pairs = [_checked(pair, counts, len(model_map.tower().layers), method, site) for pair in heads]
    places: dict[int, dict[int, int]] = {}
    for place, (layer, head) in enumerate(pairs):
        if head in places.setdefault(layer, {}):
            raise InterventionError(f"{method}: head {head} of layer {layer} is meant twice in heads {list(heads)}")
        places[layer][head] = place
    return [
        Chosen(layer, tuple(places[layer]), counts[layer], tuple(places[layer].values())) for layer in sorted(places)
    ]


def _several(some: Any) -> Iterable[Any]:
    return some if isinstance(some, Iterable) and not isinstance(some, str) else (some,)


def _pair(one: Any, method: str) -> tuple[int, int]:
    try:
        layer, head = one
        if isinstance(layer, bool) or isinstance(head, bool):
            raise TypeError("a truth value is no number")
        # The keys of an object in JSON are strings.
        return int(layer) if isinstance(layer, str) else operator.index(layer), operator.index(head)
    except (TypeError, ValueError) as error:
        raise InterventionError(f"{method}: {FORMS}; got {one!r:.60} among them") from error


def _checked(pair: tuple[int, int], counts: Mapping[int, int], layers: int, method: str, site: str) -> tuple[int, int]:
    asked = f"{method}: heads asks for head {pair[1]} of layer {pair[0]}"
    if not -layers <= pair[0] < layers:
        nearest = min(max(pair[0], 0), layers - 1)
        raise UnknownNameError(f"{asked}; the text tower has {layers} layers (0 to {layers - 1}), nearest: {nearest}")
    layer = pair[0] % layers
    if layer not in counts:
        nearest = min(counts, key=lambda one: abs(one - layer))
        raise UnknownNameError(
            f"{asked}; that layer has no attention with {site!r}; "
            f"layers that have it: {list(counts)}, nearest: {nearest}"
        )
    count = counts[layer]
    if not -count <= pair[1] < count:
        nearest = min(max(pair[1], 0), count - 1)
        raise UnknownNameError(f"{asked}; that layer has {count} heads (0 to {count - 1}), nearest: {nearest}")
    return layer, pair[1] % count
