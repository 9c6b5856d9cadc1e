"""What the user asked to look at, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from .. import sites
from ..errors import InterventionError, SteerError, unknown_name
from ..examples import Example
from ..intervention import Intervention
from ..method import Method
from ..prompts import Prompt
from ..session import map_of

Pair = tuple[int, int]


def pictures(images: Any) -> list[Any]:
    """One PIL image or several, as RGB."""
    given = list(images) if isinstance(images, list | tuple) else [images]
    if not given:
        raise SteerError("there is no picture to look at; give one PIL image or more")
    for one in given:
        if not hasattr(one, "convert"):
            raise SteerError(f"pictures must be PIL images, got {type(one).__name__}")
    return [one.convert("RGB") for one in given]


def several(method: Any) -> tuple[Any, ...]:
    """What is to be attached, one by one."""
    if method is None:
        return ()
    items = tuple(method) if isinstance(method, Iterable) else (method,)
    for one in items:
        if not isinstance(one, Method | Intervention):
            raise InterventionError(f"method must be a steer.Method, a steer.Intervention or several, got {one!r:.80}")
        if isinstance(one, Method) and one.reads != "examples":
            raise SteerError(f"method {one.name!r} names the classes of pictures and answers no questions")
    return items


def template(items: Sequence[Any]) -> str | None:
    """How the methods want prompts to be written, before and after alike."""
    found = dict.fromkeys(one.template for one in items if getattr(one, "template", None) is not None)
    if len(found) > 1:
        raise SteerError(f"the methods write prompts in different ways ({', '.join(map(repr, found))}); give template=")
    return next(iter(found), None)


def prompt(items: Sequence[Any], example: Example, model: Any, processor: Any) -> Prompt:
    """What the model is shown with the methods attached."""
    bare = Prompt(example)
    made = {one.name: one.prompts([example], model, processor)[0] for one in items if isinstance(one, Method)}
    other = {name: prompt for name, prompt in made.items() if prompt != bare}
    if len(other) > 1:
        raise SteerError(f"{', '.join(other)} each want a prompt of their own; look at one of them at a time")
    return next(iter(other.values()), bare)


def pairs(model: Any, heads: Any, attention: Literal["self", "cross"]) -> tuple[Pair, ...]:
    """The chosen heads, checked against the model."""
    mapped = map_of(model)
    counts = {
        one.layer.index: one.attention.num_heads or 1
        for one in mapped.targets(sites.attention(attention=attention))
        if one.attention is not None
    }
    if isinstance(heads, str) and heads == "all":
        return tuple((layer, head) for layer, count in counts.items() for head in range(count))
    told = f'heads are "all" or (layer, head) pairs such as [(3, 0), (3, 5)]; got {heads!r:.100}'
    try:
        pairs = tuple((int(layer), int(head)) for layer, head in heads)
    except (TypeError, ValueError) as error:
        raise InterventionError(told) from error
    if not pairs or len(set(pairs)) < len(pairs):
        raise InterventionError(f"{told}, which is {'a head twice' if pairs else 'none'}")
    for layer, head in pairs:
        if layer not in counts:
            raise unknown_name(f"layer with {attention}-attention", layer, list(counts))
        if not 0 <= head < counts[layer]:
            raise unknown_name("head", head, range(counts[layer]), f"in layer {layer}")
    return pairs
