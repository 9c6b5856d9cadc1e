"""Where the learned tensors start."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from steer import SteerError, TwoStream
from steer.model_map import Tower

from ._prompts import words_in

if TYPE_CHECKING:
    from .learner import PromptLearner

STD = 0.02


def initial(method: PromptLearner, stream: TwoStream, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Every tensor that the method's configuration asks for, fp32 on the CPU."""
    made: dict[str, torch.Tensor] = {}
    if method.context:
        made["context"] = _context(method, stream, generator)
    text, vision, count = stream.map.tower("text").width, stream.map.tower("vision").width, method.context
    for layer in range(1, method.text_depth):
        made[f"text.{layer}"] = _normal((count, text), generator)
    if method.coupled:
        made |= _coupled(method.vision_depth, made["context"].shape[-1], text, vision, generator)
    else:
        for layer in range(method.vision_depth if method.vision_context else 0):
            made[f"vision.{layer}"] = _normal((method.vision_context, vision), generator)
    if method.conditional:
        hidden = max(1, stream.streams.image.width // method.bottleneck)
        made |= _linear("meta.0", stream.streams.image.width, hidden, generator)
        made |= _linear("meta.1", hidden, made["context"].shape[-1], generator)
    for side, ratio in (("image", method.image_adapter), ("text", method.text_adapter)):
        if ratio:
            width = stream.streams.text.width
            hidden = max(1, width // method.reduction)
            made |= _linear(f"{side}_adapter.0", width, hidden, generator, bias=False)
            made |= _linear(f"{side}_adapter.1", hidden, width, generator, bias=False)
    return made


def check_depth(name: str, asked: int, tower: Tower) -> None:
    """Raise if a depth is more than the layers that a tower has; one without attention is refused for that instead."""
    kinds = [layer.attention.kind if layer.attention is not None else None for layer in tower.layers]
    if asked > len(kinds) and set(kinds) == {"softmax"}:
        raise SteerError(f"{name}={asked}, but the {tower.name} tower has {len(tower.layers)} layers")


def _context(method: PromptLearner, stream: TwoStream, generator: torch.Generator) -> torch.Tensor:
    """(M, D), or (K, M, D): the embeddings of the words to start from, or small noise."""
    table = stream.model.get_submodule(stream.streams.tokens)
    first = torch.tensor([words_in(stream, method.init or "a")], device=stream.device)
    with torch.no_grad():
        words = table(first)[0].float().cpu()
    shape = (len(method.classes),) * method.class_specific + (method.context, words.shape[-1])
    if not method.init:
        return _normal(shape, generator)
    if method.context > len(words):
        raise SteerError(
            f"context={method.context} vectors cannot start from init={method.init!r}, which has {len(words)} tokens; "
            'give a longer init, or init="" for noise'
        )
    return words[: method.context].expand(shape).clone()


def _coupled(depth: int, first: int, text: int, vision: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One projection for each layer; those behind the first start alike, as in MaPLe."""
    made = _linear("couple.0", first, vision, generator)
    later = _linear("couple", text, vision, generator)
    for layer in range(1, depth):
        made |= {name.replace("couple", f"couple.{layer}"): value.clone() for name, value in later.items()}
    return made


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return STD * torch.randn(shape, generator=generator)


def _linear(
    name: str, width_in: int, width_out: int, generator: torch.Generator, bias: bool = True
) -> dict[str, torch.Tensor]:
    """As torch's own linear layer starts."""
    bound = 1 / math.sqrt(width_in)
    made = {f"{name}.weight": (2 * torch.rand(width_out, width_in, generator=generator) - 1) * bound}
    if bias:
        made[f"{name}.bias"] = (2 * torch.rand(width_out, generator=generator) - 1) * bound
    return made
