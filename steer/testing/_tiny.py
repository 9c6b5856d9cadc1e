"""A tiny model of a class, with random weights that make every part of it count."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._configs import TINY, full_config
from ._shrink import shrink


def tiny_config(cls: type) -> Any:
    """The class's full config, shrunk; then what `TINY` says of it."""
    full = full_config(cls)
    small = shrink(full.to_dict())
    _update(small, TINY.get(cls.__name__, {}).get("config", {}))
    return type(full).from_dict(small)


def tiny_model(cls: Any) -> nn.Module:
    """A tiny model of a class in eval mode, from seed 0."""
    torch.manual_seed(0)
    model = cls._from_config(tiny_config(cls)).float().eval().requires_grad_(False)
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights under which a change anywhere moves the output.

    Matrices keep the variance of what goes through them. Vectors near 0 (biases, gates and layer scales as they are
    before training) become small numbers; norms near 1 stay about there.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            inputs = parameter[0].numel() if parameter.ndim != 3 else parameter.shape[-1]
            parameter.copy_(noise / max(inputs, 1) ** 0.5)
        elif bool((parameter.abs() < 0.5).all()):
            parameter.copy_(0.3 * noise)
        else:
            parameter.add_(0.1 * noise)


def _update(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _update(target[key], value)
        else:
            target[key] = value
