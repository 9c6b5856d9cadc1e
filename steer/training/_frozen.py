"""The model while something else is fitted: no weight asks for a gradient, nothing is dropped out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .._teacher_forcing import still


@contextmanager
def frozen(model: Any, recompute: bool = False) -> Iterator[None]:
    """Freeze a model for a block; afterwards every flag is as it was.

    Args:
        model: any model.
        recompute: run its layers under gradient checkpointing.
    """
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    with ExitStack() as undo:
        undo.enter_context(still(model))
        undo.callback(_ask, asking)
        for weight in asking:
            weight.requires_grad_(False)
        if recompute:
            undo.enter_context(_checkpointed(model))
        yield


def _ask(weights: list[Any]) -> None:
    for weight in weights:
        weight.requires_grad_(True)


@contextmanager
def _checkpointed(model: Any) -> Iterator[None]:
    """Gradient checkpointing without training mode.

    transformers checkpoints a layer only while its `training` flag is set, and then its dropout would run as well: the
    flag is set outside the checkpointed call and taken back within it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [{name: layer.__dict__.get(name) for name in _FLAGS} for layer in layers]
    for layer in layers:
        for name, value in zip(_FLAGS, (True, True, _runner(layer)), strict=True):
            layer.__dict__[name] = value
    try:
        yield
    finally:
        for layer, flags in zip(layers, before, strict=True):
            for name, value in flags.items():
                if value is None:
                    layer.__dict__.pop(name, None)
                else:
                    layer.__dict__[name] = value


_FLAGS = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")


def _runner(layer: Any) -> Callable[..., Any]:
    def run(forward: Callable[..., Any], *args: Any) -> Any:
        def quiet(*given: Any) -> Any:
            layer.training = False
            try:
                return forward(*given)
            finally:
                layer.training = True

        return checkpoint(quiet, *args, use_reentrant=False)

    return run
