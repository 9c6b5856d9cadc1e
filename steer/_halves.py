"""How one half of a two-stream model is run: its feature looked at or replaced, the other half left out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .model_map import Feature


class Found(Exception):
    """Ends a forward as soon as the feature that it was run for is there."""

    def __init__(self, feature: torch.Tensor) -> None:
        super().__init__()
        self.feature = feature


def stop(feature: torch.Tensor) -> None:
    raise Found(feature)


@contextmanager
def features(model: nn.Module, feature: Feature, see: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """Look at a feature as it passes, or put another in its place."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        new = see(output if feature.field is None else getattr(output, feature.field))
        if new is None or feature.field is None:
            return new
        output[feature.field] = new
        return output

    handle = model.get_submodule(feature.path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def idle(module: nn.Module | None, output: Any) -> Iterator[None]:
    """Have a module give what it gave before, without running."""
    if module is None:
        yield
        return
    own = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: copy.copy(output)
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64))
