"""Which features of a linear layer's output each head of q, k or v holds, and the einops pattern that says so.

Beside a ghost's tensor, whose values do not exist, runs a tensor of the same shape that holds for each value the number
of the feature it was: what moves values is done to both. What may mix heads ends the run, and the answer is None.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import torch
from einops import rearrange

_MOVES = {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "t", "get"}
_MOVES |= {"squeeze", "unsqueeze", "expand", "repeat", "repeat_interleave", "contiguous", "clone", "cat", "stack"}
_MOVES |= {"unbind", "chunk", "split", "split_with_sizes", "tensor_split", "select", "narrow", "getitem"}
_SCALES = {
    "mul",
    "rmul",
    "imul",
    "div",
    "truediv",
    "neg",
    "layer_norm",
    "rms_norm",
    "dropout",
    "to",
    "float",
    "type_as",
}
_ADDS = {"add", "radd", "iadd", "sub", "rsub"}


def features(tensor: torch.Tensor) -> torch.Tensor | None:
    """For each value of the tensor the number of the feature that it was, where that is known."""
    return getattr(tensor, "_steer_features", None)


def begin(out: torch.Tensor) -> torch.Tensor:
    """Number the features of a linear layer's output."""
    out._steer_features = torch.arange(out.shape[-1]).expand(out.shape)  # type: ignore[attr-defined]
    return out


def follow(func: Any, args: Any, kwargs: dict[str, Any], given: list[torch.Tensor], out: Any) -> None:
    """Give what a torch function returned the features of what it was given."""
    name = getattr(func, "__name__", "").strip("_")
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    numbers: Any = None
    known = [numbered for tensor in given if (numbered := features(tensor)) is not None]
    if name in _MOVES and known and len(known) == len(given):
        with contextlib.suppress(Exception):  # what cannot be followed is not known
            numbers = func(*_numbered(args), **{key: _numbered(value) for key, value in kwargs.items()})
    elif name in _SCALES or (name in _ADDS and len(known) == sum(hasattr(tensor, "_steer_tags") for tensor in given)):
        numbers = known[0] if known and all(_same_heads(known[0], other) for other in known[1:]) else None
    elif name == "setitem":
        outs = given[:1]
    numbers = list(numbers) if isinstance(numbers, (tuple, list)) else [numbers] * len(outs)
    for tensor, numbered in zip(outs, numbers, strict=True):
        if isinstance(tensor, torch.Tensor):
            fits = numbered is not None and numbered.shape == tensor.shape
            tensor._steer_features = numbered if fits else None  # type: ignore[attr-defined]


def _numbered(values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return features(values)
    return type(values)(map(_numbered, values)) if type(values) in (tuple, list) else values


def _same_heads(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.sort(-1).values, other.sort(-1).values)


def pattern_of(numbered: torch.Tensor, heads: int, width: int, total: int) -> tuple[str, int] | None:
    """The einops pattern and index of the slice whose features are these, of `total`; None where no pattern gives them.

    Args:
        numbered: the features of q, k or v, (..., H, T, d) or (..., H, d, T).
        heads: H.
        width: d.
        total: how many features the linear layer gives.
    """
    held = [head.unique() for head in numbered.movedim(-3, 0)]
    if len(held) != heads or any(len(head) != width for head in held) or total % (heads * width):
        return None
    sizes = {"n": total // (heads * width), "h": heads, "d": width}
    for axes in itertools.permutations("nhd"):
        pattern = f"({' '.join(axes)})"
        slices = rearrange(torch.arange(total), f"{pattern} -> n h d", **sizes)
        for index, part in enumerate(slices):
            if torch.equal(part, torch.stack(held)):
                return pattern, index
    return None
