"""Small facts about single modules: what is a linear layer, what its forward mentions, which settings it carries."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

ATTENDS = {"get_interface", "ALL_ATTENTION_FUNCTIONS", "scaled_dot_product_attention", "multi_head_attention_forward"}
PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "@"}
RECURRENT = ("A_log", "dt_bias", "A")
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear layer, also of a quantised or a transposed one; None for any other module."""
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if all(isinstance(size, int) for size in sizes):
        return sizes  # type: ignore[return-value]
    sizes = getattr(module, "nx", None), getattr(module, "nf", None)
    return sizes if all(isinstance(size, int) for size in sizes) else None  # type: ignore[return-value]


def is_list(module: nn.Module) -> bool:
    """Whether the module only holds others in order."""
    return isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))


def is_plain(module: nn.Module) -> bool:
    """Whether the module (dropout, activation, identity) holds no weight and thus only passes a tensor on.

    Quantised layers may keep their weights as buffers.
    """
    return not any(True for _ in module.parameters()) and not any(linear_sizes(m) for m in module.modules())


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a leaf with vectors only, as normalisations and layer scales are."""
    if any(True for _ in module.children()):
        return False
    shapes = [parameter.dim() for parameter in module.parameters()]
    return linear_sizes(module) is None and not isinstance(module, CONVS) and bool(shapes) and max(shapes) <= 1


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """The forward as its class wrote it, without what other libraries wrapped around it on the instance."""
    return inspect.unwrap(type(module).forward)


def of_torch(function: FunctionType) -> bool:
    """Whether a function is torch's own, and so has nothing to read."""
    return function.__module__.startswith("torch.")


def is_depthwise(module: nn.Module) -> bool:
    """Whether the module is a convolution of each channel with itself, as token mixers use."""
    return isinstance(module, CONVS) and module.groups > 1 and module.groups == module.in_channels


def settings(module: nn.Module) -> dict[str, int]:
    """The integers that the module itself carries, such as `num_heads` or `head_dim`."""
    return {key: value for key, value in vars(module).items() if type(value) is int}


@cache
def words_of(forward: Callable[..., Any], owner: Hashable, depth: int = 2) -> frozenset[str]:
    """Names that a forward uses, those of its own methods and of plain functions beside it included."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    if code is None:
        return frozenset()
    words = set(_names(code))
    if depth == 0:
        return frozenset(words)
    namespace = getattr(inspect.unwrap(forward), "__globals__", {})
    for word in list(words):
        target = namespace.get(word, inspect.getattr_static(owner, word, None))
        if isinstance(target, (staticmethod, classmethod)):
            target = target.__func__
        if isinstance(target, FunctionType) and not of_torch(target):
            words |= words_of(target, owner, depth - 1)
    return frozenset(words)


def _words(module: nn.Module) -> frozenset[str]:
    owner: Any = type(module)
    return words_of(forward_of(module), owner)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    if any(instruction.argrepr == "@" for instruction in dis.get_instructions(code)):
        yield "@"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def attends(module: nn.Module) -> bool:
    """Whether the module's own forward computes softmax attention."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    if not any(linear_sizes(child) for child in module.modules()):
        return False
    words = _words(module)
    return bool(words & ATTENDS) or bool(words & {"softmax", "Softmax"} and words & PRODUCTS)


def uses_registry(module: nn.Module) -> bool:
    """Whether the module asks transformers' AttentionInterface for its attention function."""
    words = _words(module)
    return "get_interface" in words or "ALL_ATTENTION_FUNCTIONS" in words


def recurrence(module: nn.Module) -> str | None:
    """`ssm`, `linear` or `conv` for a token mixer without softmax; None for anything else."""
    names = {name for name, _ in module.named_parameters(recurse=False)}
    inner = {name for child in module.children() for name, _ in child.named_parameters(recurse=False)}
    if (names | inner) & set(RECURRENT):
        holds = any(linear_sizes(child) for child in module.children())
        return None if not holds else "ssm" if "D" in names else "linear"
    return "conv" if any(is_depthwise(child) for child in module.children()) else None
