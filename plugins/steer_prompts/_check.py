"""What a configuration must be to make sense, and which tensors it asks for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from steer import SteerError
from steer.errors import unknown_name

from ._prompts import filled

if TYPE_CHECKING:
    from .learner import PromptLearner

REGULARISERS = ("none", "knowledge", "consistency", "self_regulation", "aligned_gradient")
POSITIONS = ("end", "middle", "front")
NOT_LEARNED = ("slots", "cache.labels")
"""Tensors that say where something is and not what was learned."""


def check(method: PromptLearner) -> None:
    """Look at every field, alone and with the others.

    Raises:
        SteerError: a value that makes no sense, or parts that do not go together.
    """
    for name, known in (("regulariser", REGULARISERS), ("class_position", POSITIONS)):
        if getattr(method, name) not in known:
            raise unknown_name(name, getattr(method, name), known)
    _numbers(method)
    if isinstance(method.templates, str) or not method.templates:
        raise SteerError(f'templates must be a list such as ["a photo of a {{}}."], got {method.templates!r}')
    for template in method.templates:
        filled(template, "cat")
    _together(method)


def learned(method: PromptLearner) -> list[str]:
    """The names of the tensors that are fitted by gradient."""
    made = ["context"] if method.context else []
    made += [f"text.{layer}" for layer in range(1, method.text_depth)]
    if method.coupled:
        made += [f"couple.{layer}.{part}" for layer in range(method.vision_depth) for part in ("weight", "bias")]
    elif method.vision_context:
        made += [f"vision.{layer}" for layer in range(method.vision_depth)]
    if method.conditional:
        made += [f"meta.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")]
    for side, ratio in (("image", method.image_adapter), ("text", method.text_adapter)):
        made += [f"{side}_adapter.{layer}.weight" for layer in (0, 1) if ratio]
    return made


def fitted(method: PromptLearner) -> None:
    """Look at what there is to attach.

    Raises:
        SteerError: it was not fitted, or with other fields than it has now; or it needs to be bound.
    """
    if len(method.templates) > 1 and not method.text_changes and method.ensemble is None:
        raise SteerError(
            f"method {method.name!r} averages {len(method.templates)} templates, which are read by a model: call "
            "bind(model, processor) first"
        )
    wanted = learned(method)
    if method.cache and method._turn.voting:
        wanted += ["cache.keys", "cache.labels"]
    missing = [name for name in wanted if name not in method.tensors]
    if wanted and len(missing) == len(wanted):
        raise SteerError(f"method {method.name!r} must be fitted first, or loaded")
    if missing:
        raise SteerError(
            f"method {method.name!r} was fitted with other settings than it has now: it has no {', '.join(missing[:5])}"
        )


def _numbers(method: PromptLearner) -> None:
    for name in ("context", "vision_context", "text_depth", "vision_depth", "bottleneck", "reduction"):
        least, value = 0 if name.endswith("context") else 1, getattr(method, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise SteerError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name in ("image_adapter", "text_adapter", "cache", "sharpness", "weight"):
        most, value = 1.0 if name.endswith("adapter") else math.inf, getattr(method, name)
        if not isinstance(value, int | float) or not 0 <= value <= most or not math.isfinite(value):
            raise SteerError(f"{name} must be a number of at least 0{' and at most 1' * (most == 1)}, got {value!r}")


def _together(method: PromptLearner) -> None:
    needs = {
        "class_specific": method.class_specific,
        "conditional": method.conditional,
        "coupled": method.coupled,
        "text_depth > 1": method.text_depth > 1,
        "init": bool(method.init),
        "class_position": method.class_position != "end",
    }
    for name, asked in needs.items():
        if asked and not method.context:
            raise SteerError(f"{name} needs context vectors; context is 0")
    for other in ("conditional", "coupled"):
        if method.class_specific and getattr(method, other):
            raise SteerError(f"class_specific and {other} cannot be had together")
    if method.coupled and method.vision_context not in (0, method.context):
        raise SteerError(
            f"coupled gives the vision tower the {method.context} vectors of the text; leave vision_context"
        )
    if method.coupled and method.vision_depth > method.text_depth:
        raise SteerError(f"coupled: vision_depth={method.vision_depth} is more than text_depth={method.text_depth}")
    if method.vision_depth > 1 and not method.vision_changes:
        raise SteerError("vision_depth > 1 needs vision_context, or coupled")
    if method.regulariser != "none" and not learned(method):
        raise SteerError(f"regulariser={method.regulariser!r} needs something that is fitted by gradient")
    if method.regulariser == "knowledge" and not (method.context or method.text_adapter):
        raise SteerError("regulariser='knowledge' holds texts where they were, and nothing here moves them")
