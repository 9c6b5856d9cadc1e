"""A second model on the same tensors, with biases that the first does not have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..errors import InterventionError
from .switches import Switched


def clone(model: Any, switched: Switched) -> Any:
    """A copy of the model's modules and config, not of its tensors, with the switches' biases as zeros."""
    tensors = chain(model.parameters(), model.buffers())
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for switch in switched.switches:
        kind = type(switch.config_of(made.config))
        switch.set(made.config)
        # transformers copies configs while it builds, so that a tower may hold another one than the model's.
        for module in made.modules():
            own = getattr(module, "config", None)
            if type(own) is kind:
                setattr(own, switch.field, switch.value)
    for name, shape in (switched.new or {}).items():
        path = name.removesuffix(".bias")
        module = made.get_submodule(path)
        if "bias" not in module._parameters:
            raise InterventionError(
                f"{path} is a {type(module).__name__}, not the layer that transformers builds there; merge adapters "
                "into the weights before folding"
            )
        module.bias = nn.Parameter(_zeros_like_weight(module, shape, made), requires_grad=False)
    return made


def _zeros_like_weight(module: nn.Module, shape: tuple[int, ...], model: Any) -> torch.Tensor:
    weight = next(iter(module.parameters(recurse=False)), None)
    device = weight.device if weight is not None else model.device
    floating = weight is not None and weight.is_floating_point() and weight.element_size() > 1
    dtype = weight.dtype if weight is not None and floating else model.dtype
    return torch.zeros(shape, dtype=dtype, device=device)


class Biases:
    """The biases of a clone that take shifts; `set` gives them any multiple of it.

    Raises:
        InterventionError: a shift has another width than the bias.
    """

    def __init__(self, model: nn.Module, shifts: Mapping[str, torch.Tensor]) -> None:
        self._all = []
        for path, shift in shifts.items():
            module = model.get_submodule(path)
            own = module.bias
            assert isinstance(own, torch.Tensor)
            if own.shape != shift.shape:
                raise InterventionError(f"the shift at {path} has shape {list(shift.shape)}, not {list(own.shape)}")
            self._all.append((module, own.detach(), shift.to(own.device), own.requires_grad))

    def set(self, times: float) -> None:
        """Let every bias be what it was plus `times` its shift."""
        for module, own, shift, trains in self._all:
            wide = own.double() + times * shift.double()
            # A new parameter: the old one belongs to the first model as well.
            module.bias = nn.Parameter(wide.to(own.dtype), requires_grad=trains)
