"""A model, inputs for it, and what it gives for them untouched: what promises are checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

Status = Literal["pass", "fail", "skip"]
Inputs = Mapping[str, torch.Tensor]
# Relative to the largest output: a head taken out of a sum and a head multiplied by zero round differently.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


@dataclass(frozen=True)
class Check:
    """One promise tried at one place.

    Attributes:
        name: the promise.
        where: tower, layer and head, or empty.
        status: `pass`, `fail`, or `skip` where it could not be tried; `detail` says why.
        detail: what was measured.
    """

    name: str
    where: str
    status: Status
    detail: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return asdict(self)


class Bench:
    """Runs a model on inputs and compares.

    Attributes:
        plain: every floating tensor of its output, untouched.
        tolerance: by how much of the largest output two ways of computing it may differ.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model: Any = model
        self.inputs = inputs
        self.plain = self.run()
        self.tolerance = TOLERANCE.get(self.plain[0].dtype, 5e-2) if self.plain else 0.0

    def run(
        self, weights: Mapping[str, torch.Tensor] | None = None, inputs: Inputs | None = None
    ) -> list[torch.Tensor]:
        """The output's floating tensors, without gradients; models that draw random numbers draw the same.

        Args:
            weights: by name, those that take the place of the model's own.
            inputs: others than the bench's.
        """
        given = dict(self.inputs if inputs is None else inputs)
        devices = [parameter.device for parameter in self.model.parameters() if parameter.is_cuda][:1]
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            if weights is None:
                return tensors(self.model(**given))
            return tensors(torch.func.functional_call(self.model, dict(weights), (), given))

    def exact(self, name: str, where: str, outputs: list[torch.Tensor]) -> Check:
        """Whether outputs are those of the untouched model, bit for bit."""
        same = equal(outputs, self.plain)
        detail = "every bit the same" if same else f"differs by {distance(outputs, self.plain):.1e} of the output"
        return Check(name, where, "pass" if same else "fail", detail)

    def same_state(self, name: str, before: Mapping[str, Any]) -> Check:
        """Whether `state` is what it was."""
        after = state(self.model)
        left = [key for key in before if before[key] != after[key]]
        detail = f"changed: {', '.join(left)}" if left else "as they were"
        return Check(name, "hooks, config, weights", "fail" if left else "pass", detail)


def state(model: nn.Module) -> dict[str, Any]:
    """What a session may not leave behind: hooks, configuration, and any trace on the weights."""
    modules = list(model.modules())
    config = getattr(model, "config", None)
    return {
        "hooks": [tuple(getattr(module, kind)) for module in modules for kind in _HOOKS],
        "instance attributes": sum(len(vars(module)) for module in modules),
        "attention implementation": getattr(config, "_attn_implementation", None),
        "config": config.to_dict() if config is not None else None,
        "config objects": [id(vars(module).get("config")) for module in modules],
        "transformers' attention functions": (list(AttentionInterface()), list(AttentionMaskInterface())),
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "weights written": [p._version for p in model.parameters() if not p.is_inference()],
    }


def tensors(output: Any) -> list[torch.Tensor]:
    """Every floating tensor of an output, in order; caches are left out, they hold no result."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        kept = (value for key, value in output.items() if "past_key_values" not in key and key != "cache")
        return [tensor for value in kept for tensor in tensors(value)]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in tensors(value)]
    return []


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Whether all pairs are bit for bit the same; what is not a number equals itself."""
    if [(x.shape, x.dtype) for x in a] != [(y.shape, y.dtype) for y in b]:
        return False
    return all(torch.equal(x, y) or bool(((x == y) | (x.isnan() & y.isnan())).all()) for x, y in zip(a, b, strict=True))


def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest finite value of `b`, over all pairs of tensors."""
    largest = 0.0
    for x, y in zip(a, b, strict=False):
        if x.shape != y.shape:
            return float("inf")
        wide = torch.float64
        x, y = x.to(wide), y.to(wide)
        finite = torch.isfinite(y)
        if not torch.equal(finite, torch.isfinite(x)):
            return float("inf")
        if finite.any():
            scale = y[finite].abs().max().clamp_min(1e-12)
            largest = max(largest, float((x - y)[finite].abs().max() / scale))
    return largest
