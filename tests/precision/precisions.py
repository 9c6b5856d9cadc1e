"""Each precision: how a model is loaded in it, its fp32 twin, and how far logits may be from the twin's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, QuantoConfig

import steer

PRECISIONS = ("bfloat16", "float16", "int8")
TOLERANCE = {"bfloat16": 2e-2, "float16": 2.5e-3, "int8": 1e-4}
"""Of the logits' norm, set from the dtype: bf16 has 8 bits and fp16 11, and the twin of int8 does the same sums in
another order."""
FINEST = 1e-6
"""A share of the norm below which two sums in fp32 are not told apart."""


@dataclass(frozen=True, eq=False)
class Precise:
    """A shipped model in one precision.

    Attributes:
        model: as `from_pretrained` gives it.
        twin: the same checkpoint in fp32; of int8 the same model with its weights written out as fp32.
        processor: of both.
    """

    precision: str
    model: Any
    twin: Any
    processor: Any


@cache
def precise(name: str, precision: str) -> Precise:
    """A shipped model, loaded from its folder as anyone would."""
    twin, processor = steer.zoo.load(name)
    auto = AutoModel if name == "tiny-clip" else AutoModelForImageTextToText
    if precision == "int8":
        how: dict[str, Any] = {"quantization_config": QuantoConfig(weights="int8"), "dtype": torch.float32}
    else:
        how = {"dtype": getattr(torch, precision)}
    model = auto.from_pretrained(steer.zoo.folder(name), **how).eval()
    if precision == "int8":
        for path, weight in quantised(model).items():
            twin.get_submodule(path).weight.data.copy_(weight.dequantize())
    return Precise(precision, model, twin, processor)


def quantised(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that are kept in 8 bits, by their module's path."""
    return {path: m.weight for path, m in model.named_modules() if hasattr(getattr(m, "weight", None), "_scale")}


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every weight and buffer, of a quantised one what it is made of."""
    found: dict[str, torch.Tensor] = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        parts = {"data": value._data, "scale": value._scale} if hasattr(value, "_scale") else {"": value}
        found |= {f"{name}.{part}": tensor.detach().clone() for part, tensor in parts.items()}
    return found


def distance(got: torch.Tensor, truth: torch.Tensor) -> float:
    """How far apart, as a share of the truth's norm, in fp64."""
    return float((got.double() - truth.double()).norm() / truth.double().norm())
