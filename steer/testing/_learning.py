"""The check that gradients reach what a method learns."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .._bench import Check, Inputs, tensors
from ..method import Method
from ..session import attach
from ..training import Learned
from ._case import Case


def check_learns(method: Method, model: Any, inputs: Inputs) -> Check:
    """Check that gradients of the output reach every tensor that is fitted.

    Args:
        method: a `Learned` one, with or without tensors, or any other with tensors.
        model: in eval mode; its parameters get no gradient.
        inputs: for `model(**inputs)`. The last two words count as written, the others as the prompt.

    Returns:
        The check with the smallest norm; skipped where there are no tensors.

    Raises:
        AssertionError: a tensor is not reached, its gradient is zero or not finite; the message names it.
    """
    return learns(Case(method, model, inputs))


def learns(case: Case) -> Check:
    """Gradients reach what is fitted."""
    trained = copy.copy(case.method)
    fixed = case.method.frozen_tensors() if isinstance(case.method, Learned) else frozenset()
    trained.tensors = {
        name: one.detach().clone().requires_grad_(one.is_floating_point() and name not in fixed)
        for name, one in case.method.tensors.items()
    }
    leaves = {name: one for name, one in trained.tensors.items() if one.requires_grad}
    if not leaves:
        return Check("learns", "", "skip", "the method has no tensors that are fitted")
    norms = _gradient_norms(case, trained, leaves)
    wrong = [f"{name!r}: {norm}" for name, norm in norms.items() if not (isinstance(norm, float) and 0 < norm < 1e30)]
    if wrong:
        raise AssertionError(f"{case.method.name}: gradients of the output do not reach {', '.join(wrong)}")
    smallest = min(norms, key=lambda name: float(norms[name]))
    return Check("learns", "", "pass", f"{len(norms)} tensors; smallest gradient {norms[smallest]:.1e} ({smallest})")


def _gradient_norms(case: Case, trained: Method, leaves: dict[str, torch.Tensor]) -> dict[str, Any]:
    """By tensor the norm of its gradient, or a word."""
    ids, both = case.inputs.get("input_ids"), bool(getattr(case.model.config, "is_encoder_decoder", False))
    length = ids.shape[1] - 2 if case.writes and ids is not None and not both else None
    with torch.enable_grad(), attach(case.model, trained, strict=False, model_map=case.map, prompt_length=length):
        loss = [one.float().square().mean() for one in tensors(case.model(**case.inputs)) if one.requires_grad]
        if not loss:
            return dict.fromkeys(leaves, "nothing depends on it")
        found = torch.autograd.grad(torch.stack(loss).sum(), list(leaves.values()), allow_unused=True)
    return {
        name: "nothing depends on it" if one is None else float(one.norm())
        for name, one in zip(leaves, found, strict=True)
    }
