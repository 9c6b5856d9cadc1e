"""Running a model from one of its layers upwards, on a hidden state that was seen before.

The layers below are told to hand on what they handed on then, and run nothing. The model's own forward does the rest,
so nothing of it is copied: masks, position embeddings, norms and the head are its own. What the first layers would have
been given (pictures, embeddings) does not matter any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .session import map_of


class Replay:
    """Hidden states of one forward, from any layer of which it can go on.

    Use `watch()` around the forward that is to be remembered, `from_layer(i)` around later ones with the same inputs.
    """

    def __init__(self, model: nn.Module, tower: str = "text") -> None:
        self._layers = [model.get_submodule(layer.path) for layer in map_of(model).tower(tower).layers]
        self._inputs: list[Any] = [None] * len(self._layers)
        self._tuples: list[bool] = [False] * len(self._layers)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Remember what each layer is given in the forward inside the block."""
        handles = []
        for index, layer in enumerate(self._layers):

            def before(module: nn.Module, args: Any, kwargs: Any, index: int = index) -> None:
                self._inputs[index] = args[0] if args else kwargs["hidden_states"]

            def after(module: nn.Module, args: Any, output: Any, index: int = index) -> None:
                self._tuples[index] = isinstance(output, tuple)

            handles += [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def from_layer(self, first: int) -> Iterator[None]:
        """Let forwards inside the block begin at layer `first`: those below run nothing."""
        own = [layer.__dict__.get("forward") for layer in self._layers[:first]]
        for index, layer in enumerate(self._layers[:first]):
            layer.__dict__["forward"] = _Handing(self._inputs[first], self._tuples[index])
        try:
            yield
        finally:
            for layer, forward in zip(self._layers, own, strict=False):
                if forward is None:
                    del layer.__dict__["forward"]
                else:
                    layer.__dict__["forward"] = forward


class _Handing:
    """A layer's forward for as long as it only hands on a hidden state (B, T, D)."""

    def __init__(self, hidden: torch.Tensor, as_tuple: bool) -> None:
        self._output = (hidden,) if as_tuple else hidden

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._output
