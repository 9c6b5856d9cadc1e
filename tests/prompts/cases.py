"""A model of each architecture with pictures, its own scores, and rows written by plain hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

import steer

from .families import FAMILIES, SLOTS, Family
from .models import CLASSES, GRIDS, build, pictures


@dataclass(frozen=True)
class Case:
    """A model with its own scores of some pictures and texts."""

    name: str
    family: Family
    model: Any
    processor: Any
    stream: steer.TwoStream
    images: list[Any]
    examples: list[tuple[Any, str]]

    def own(self, texts: dict[str, torch.Tensor], images: list[Any]) -> torch.Tensor:
        """What the model says, called as its documentation does."""
        with torch.no_grad():
            out = self.model(**texts, **self.processor.image_processor(images=images), **self.family.call)
        return getattr(out, self.family.scores)


@cache
def made(name: str) -> Case:
    """The case of a family, the same one each time."""
    model, processor = build(name)
    images = pictures(6, sizes=GRIDS)
    examples = [(image, CLASSES[index % 4]) for index, image in enumerate(images)]
    return Case(name, FAMILIES[name], model, processor, steer.TwoStream(model, processor), images, examples)


def words(case: Case) -> dict[str, torch.Tensor]:
    """The classes' hand-written prompts as plain transformers makes them."""
    texts = [f"a photo of a {name}." for name in CLASSES]
    padding = "max_length" if case.stream.pads_matter else "longest"
    return dict(case.processor.tokenizer(texts, padding=padding, max_length=SLOTS, return_tensors="pt"))


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest score."""
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def fitted(case: Case, preset: str, **changes: Any) -> Any:
    """A method with tensors large enough to be seen."""
    method = steer.create(preset, classes=CLASSES, **changes)
    method.fit(case.model, case.processor, case.examples, progress=False, epochs=1)
    generator = torch.Generator().manual_seed(1)
    for value in method.tensors.values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
    return method


@contextmanager
def hooked(module: nn.Module, function: Any) -> Iterator[None]:
    """A function on what a module gives."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def seen_alone(case: Case, image: Any, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The feature of one picture without padding, rows put behind its patches by hand."""
    model = case.model
    layers = model.get_submodule(case.family.vision)
    pixels = dict(case.processor.image_processor(images=[image]))
    if case.family.packed:
        count = int(pixels["pixel_attention_mask"].sum())
        pixels |= {name: pixels[name][:, :count] for name in ("pixel_values", "pixel_attention_mask")}
    first, second = tensors["vision.0"][None], tensors["vision.1"][None]
    with ExitStack() as stack:
        put = lambda module, function: stack.enter_context(hooked(module, function))  # noqa: E731
        put(model.get_submodule(case.family.embeddings), lambda x: torch.cat([x, first], 1))
        put(layers[0], lambda x: torch.cat([x[:, :-2], second], 1))
        put(layers[-1], lambda x: x[:, :-2])
        return case.stream.image_features(pixels)
