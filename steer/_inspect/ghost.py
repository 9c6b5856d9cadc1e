"""A twin of a module whose weights are shapes only, and a trace of what flows into its attention function.

The twin shares nothing that can be written with the model: running it leaves no trace there and touches no weight.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .features import begin, features, follow
from .modules import linear_sizes

_HOOK_NAMES = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith(_HOOK_NAMES))
_KEYS = itertools.count()
Tags = frozenset[str]


class GhostLinear(nn.Module):
    """Stands in for a linear layer, quantised or not: right sizes, no arithmetic; its output carries its name."""

    def __init__(self, name: str, sizes: tuple[int, int], trace: Trace) -> None:
        super().__init__()
        self.in_features, self.out_features = sizes
        self.name, self.trace = name, trace
        self.weight = torch.empty(sizes[1], sizes[0], device="meta")
        self.bias = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if hidden_states.shape[-1] != self.in_features:
            raise ValueError(f"{self.name} takes {self.in_features} features, was given {hidden_states.shape[-1]}")
        out = hidden_states.new_empty((*hidden_states.shape[:-1], self.out_features))
        return self.trace.linear(self.name, hidden_states, out)


@dataclass
class Call:
    """What one attention function received: shapes of q, k, v, the names of what each was made from, its features."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    sources: tuple[Tags, Tags, Tags]
    registry: bool
    features: tuple[torch.Tensor | None, ...] = (None, None, None)


@dataclass
class Trace:
    """Follows tensors through a ghost's forward.

    `tags` of a tensor are the linear layers and inputs it was made from, back to the nearest linear layer; `roots` go
    back to the inputs of the forward.
    """

    calls: list[Call] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    def linear(self, name: str, given: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if "attended" in roots(given):
            self.after.append(name)
        return begin(mark(out, frozenset({name}), roots(given)))

    def attended(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, registry: bool) -> None:
        """Note one call; q, k (B, H, T, d) or (B*H, T, d), v likewise."""
        sources = (tags(q) | roots(q), tags(k) | roots(k), tags(v) | roots(v))
        numbered = features(q), features(k), features(v)
        call = Call(tuple(q.shape), tuple(k.shape), tuple(v.shape), sources, registry, numbered)
        self.calls.append(call)
        if q.dim() == 5:  # (B, blocks, H, T, d) or (B, H, blocks, T, d): the output projection will tell
            moved = {name: tuple(getattr(call, name)[axis] for axis in (0, 2, 1, 3, 4)) for name in ("q", "k", "v")}
            turned = tuple(f if f is None else f.permute(0, 2, 1, 3, 4) for f in numbered)
            self.calls.append(replace(call, features=turned, **moved))  # type: ignore[arg-type]


def tags(tensor: torch.Tensor) -> Tags:
    return getattr(tensor, "_steer_tags", frozenset())


def roots(tensor: torch.Tensor) -> Tags:
    return getattr(tensor, "_steer_roots", frozenset())


def mark(tensor: torch.Tensor, new_tags: Tags, new_roots: Tags) -> torch.Tensor:
    tensor._steer_tags, tensor._steer_roots = new_tags, new_roots  # type: ignore[attr-defined]
    return tensor


class Follow(TorchFunctionMode):
    """Hands the marks of a torch function's inputs to its outputs, and notices attention written out by hand."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.products: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.scores: tuple[torch.Tensor, torch.Tensor] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__bool__":  # a meta tensor has no values: let conditions on masks hold
            return True
        given = list(_tensors((args, tuple(kwargs.values()))))
        if name in ("to", "type_as", "view_as", "expand_as", "reshape_as"):  # the second lends its form only
            given = given[:1]
        if name == "scaled_dot_product_attention":
            out = given[0].new_empty((*given[0].shape[:-1], given[2].shape[-1]))
            self.trace.attended(given[0], given[1], given[2], registry=False)
            return mark(out, frozenset(), frozenset({"attended"}))
        out = func(*args, **kwargs)
        new_tags: Tags = frozenset().union(*(tags(tensor) for tensor in given))
        new_roots: Tags = frozenset().union(*(roots(tensor) for tensor in given))
        if name in ("matmul", "bmm", "einsum", "__matmul__", "baddbmm", "linear") and len(given) >= 2:
            new_roots |= self._product(given[-2], given[-1], out)
        if name == "softmax" and isinstance(out, torch.Tensor) and (scores := self._scores_of(out)) is not None:
            self.scores = scores
            new_roots |= {"probabilities"}
        for tensor in _tensors((out,)):
            mark(tensor, new_tags, new_roots)
        follow(func, args, kwargs, given, out)
        return out

    def _scores_of(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The q and k whose product has become these attention weights."""
        for left, right, out in reversed(self.products):
            if out.dim() >= 3 and out.shape[-2:] == weights.shape[-2:] and out.numel() == weights.numel():
                return left, right
        return None

    def _product(self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> Tags:
        if self.scores is None:
            self.products.append((left, right, out))
            return frozenset()
        weighted = right if "probabilities" in roots(left) else left if "probabilities" in roots(right) else None
        if weighted is None:
            return frozenset()
        self.trace.attended(*self.scores, weighted, registry=False)
        self.scores = None
        return frozenset({"attended"})


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def ghost(module: nn.Module, trace: Trace, config_for: dict[int, Any], path: str = "") -> nn.Module:
    """A twin of `module` without weights, hooks, or configs of its own; names are paths below `module`."""
    sizes = linear_sizes(module)
    if sizes is not None and path:
        return GhostLinear(path, sizes, trace)
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__ = dict(module.__dict__)
    twin.__dict__.pop("forward", None)  # an instance's forward is another library's wrapper around the class's
    for name in _HOOKS:
        twin.__dict__[name] = OrderedDict()
    for name in ("_parameters", "_buffers"):
        tensors = module.__dict__[name].items()
        twin.__dict__[name] = {key: None if value is None else _shape_only(value) for key, value in tensors}
    twin.__dict__["_modules"] = {
        name: None if child is None else ghost(child, trace, config_for, f"{path}.{name}" if path else name)
        for name, child in module.__dict__["_modules"].items()
    }
    for key, value in twin.__dict__.items():
        if hasattr(value, "_attn_implementation_internal"):
            twin.__dict__[key] = config_for.setdefault(id(value), copy.copy(value))
    twin.training = False
    return twin


def _shape_only(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tuple(tensor.shape), dtype=dtype, device="meta")


@contextmanager
def probing(trace: Trace, config_for: dict[int, Any]) -> Iterator[None]:
    """Send the ghosts' attention to the trace through a key of the registry that exists only inside this context."""
    from torch.fx.experimental import _config
    from transformers.modeling_utils import AttentionInterface

    key = f"steer_probe_{next(_KEYS)}"

    def attention(module, query, key_states, value, attention_mask=None, **kwargs):  # type: ignore[no-untyped-def]
        trace.attended(query, key_states, value, registry=True)
        out = query.new_empty((query.shape[0], query.shape[2], query.shape[1], value.shape[-1]))
        return mark(out, frozenset(), frozenset({"attended"})), None

    for config in config_for.values():
        config._attn_implementation_internal = key
    AttentionInterface._global_mapping[key] = attention
    try:
        assume = _config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
        with assume, Follow(trace), torch.no_grad():
            yield
    finally:
        del AttentionInterface._global_mapping[key]
