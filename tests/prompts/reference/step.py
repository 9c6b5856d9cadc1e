"""Gradients by name, and one step of plain SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def gradients(loss: Callable[[Tensors], Tensor], learned: Mapping[str, Tensor]) -> tuple[Tensor, Tensors]:
    """The loss (scalar) at `learned`, and its gradient with respect to each of them."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in learned.items()}
    value = loss(leaves)
    return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def sgd(
    learned: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    momenta: Mapping[str, Tensor] | None,
    lr: float,
    momentum: float = 0.9,
    decay: float = 5e-4,
) -> tuple[Tensors, Tensors]:
    """d = g + decay w; v = momentum v + d (v = d at first, `momenta` None); w - lr v. Returns the new w and v."""
    new, kept = {}, {}
    for name, tensor in learned.items():
        d = gradient[name] + decay * tensor
        kept[name] = d if momenta is None else momentum * momenta[name] + d
        new[name] = tensor - lr * kept[name]
    return new, kept
