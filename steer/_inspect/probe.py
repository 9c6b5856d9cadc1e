"""Run a ghost of one attention module to see what its attention function receives."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .ghost import Call, Trace, ghost, mark, probing
from .modules import forward_of, linear_sizes, settings, uses_registry

TOKENS, STATES = 7, 5  # of the sequence and of another tower's states: primes, which no count of heads is
_STATES = re.compile(r"states|hidden|context|memory|media|latent|features|encoder|key|value|source|kv|^query")
_NOT_STATES = re.compile(
    r"past|shared|cache|mask|position|output|layer|dropout|length|bias|indices|topk|ids|shape|size|grid"
)
_ROTARY = re.compile(r"position_embed|rotary|rope|freqs|^cos$|^sin$|^pos_emb")


@dataclass(frozen=True)
class Probe:
    """One successful run: the calls of the attention function and the linear layers that ran on its result."""

    calls: tuple[Call, ...]
    after: tuple[str, ...]


def states_parameters(module: nn.Module) -> list[str]:
    """Parameters of the forward that can carry another tower's states (not the first, which is the residual stream)."""
    names = list(_parameters(module))[1:]
    return [name for name in names if not _NOT_STATES.search(name) and not _ROTARY.search(name)]


def probe(module: nn.Module, states: tuple[str, ...] = (), shared: dict[Any, Any] | None = None) -> Probe | None:
    """What the attention function of `module` receives, or None where no guess at its arguments runs.

    Args:
        module: the attention module, on any device.
        states: parameters of its forward that are given another tower's states.
        shared: what earlier layers left for later ones (keys and values that several layers use); written to.
    """
    widths = [sizes for child in module.modules() if (sizes := linear_sizes(child))]
    registry = uses_registry(module)
    trace: Trace = Trace()
    configs: dict[int, Any] = {}
    twin = ghost(module, trace, configs)
    for arguments in _guesses(module, states, widths, {} if shared is None else shared):
        trace.calls.clear()
        trace.after.clear()
        whole = False
        with contextlib.suppress(Exception), probing(trace, configs):  # a wrong guess may fail in any way
            type(twin).forward(twin, **arguments)
            whole = True
        calls = [call for call in trace.calls if call.registry]
        if not registry or (whole and not calls):  # some ask the registry in a way that never finds anything
            calls = trace.calls
        if calls:  # far enough, whatever happened after the attention function
            return Probe(tuple(calls), tuple(trace.after))
    return None


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """What the forward takes by name, and what it looks for by name among its other arguments."""
    forward = forward_of(module)
    parameters = inspect.signature(forward).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name: value for name, value in parameters.items() if name != "self" and value.kind not in kinds}
    if "position_ids" in forward.__code__.co_consts:
        named.setdefault("position_ids", inspect.Parameter("position_ids", inspect.Parameter.KEYWORD_ONLY))
    return named


def _guesses(
    module: nn.Module, states: tuple[str, ...], widths: list[tuple[int, int]], shared: dict[Any, Any]
) -> Iterator[dict[str, Any]]:
    """Arguments for the forward, likeliest first."""
    parameters = _parameters(module)
    ins = list(dict.fromkeys(size[0] for size in widths))
    outs = [size[1] for size in widths]
    own = list(dict.fromkeys(width for width in ins[:2] + ins[-1:]))
    own.sort(key=lambda width: width not in outs)  # what comes in also goes out
    rotary = [None] if not any(_ROTARY.search(name) for name in parameters) else list(_rotaries(module))
    others = ins if states else [0]
    given = [states, *([(name,) for name in states] if len(states) > 1 else [])]
    masks = [None, *_masks()] if any("mask" in name for name in parameters) else [None]
    axes = [(), (2,)] if "position_ids" in parameters else [()]
    choices = itertools.product(own, _SHAPES, rotary, masks, others, given, axes)
    for width, shape, angles, mask, other, some, pair in choices:
        guess = _Guess(width, other, shape, angles, mask, some, set(states) - set(some), pair, shared)
        values = {name: guess.value(position, value) for position, (name, value) in enumerate(parameters.items())}
        yield {name: value for name, value in values.items() if value is not _SKIP}


_SHAPES = [(1, TOKENS), (TOKENS,), (1, 2, TOKENS)]
_SKIP = object()


def _masks() -> list[torch.Tensor]:
    shapes = [(1, 1, TOKENS, TOKENS), (1, TOKENS), (1, 2 * TOKENS)]
    return [torch.ones(shape, dtype=torch.bool, device="meta") for shape in shapes]


@dataclass
class _Guess:
    """One guess at the sizes and layouts of an attention forward's arguments."""

    width: int
    other: int
    shape: tuple[int, ...]
    angles: Any
    mask: torch.Tensor | None
    states: tuple[str, ...]
    absent: set[str]
    pair: tuple[int, ...]
    shared: dict[Any, Any]

    def value(self, position: int, parameter: inspect.Parameter) -> Any:
        """A value for the parameter, or _SKIP to leave it at its default."""
        name, optional = parameter.name, parameter.default is not inspect.Parameter.empty
        if position == 0:
            return self._tensor("own", self.width, self.shape)
        if name in self.states:
            return self._tensor("states", self.other, (1, STATES))
        if name in self.absent:
            return None
        if _ROTARY.search(name) and self.angles is not None:
            return self.angles[0] if name == "cos" else self.angles[1] if name == "sin" else self.angles
        if "cu_seqlens" in name:
            return torch.tensor([0, TOKENS], dtype=torch.int32)
        if "max_seqlen" in name:
            return TOKENS
        if "position_ids" in name or name == "positions":
            return torch.zeros(1, TOKENS, *self.pair, dtype=torch.long, device="meta")
        if "shared" in name:
            return self.shared
        if "indices" in name:
            return torch.zeros(1, TOKENS, TOKENS, dtype=torch.long, device="meta")
        if "mask" in name and (self.mask is not None or not optional):
            of_states = _STATES.search(name) and not name.startswith("query")
            two_axes = self.mask is not None and self.mask.dim() == 2
            return torch.ones(1, STATES, dtype=torch.bool, device="meta") if of_states and two_axes else self.mask
        if optional:
            return _SKIP
        if _STATES.search(name) and not _NOT_STATES.search(name):
            return self._tensor("own", self.width, self.shape)
        return False if parameter.annotation in (bool, "bool") else None

    def _tensor(self, root: str, width: int, shape: tuple[int, ...]) -> torch.Tensor:
        return mark(torch.empty(*shape, width, device="meta"), frozenset(), frozenset({root}))


def _rotaries(module: nn.Module) -> Iterator[Any]:
    """Rotary angles in the layouts that attention modules take, for every width that can be a head's."""
    own = settings(module)
    config = next((value for value in vars(module).values() if hasattr(value, "to_dict")), None)
    told = vars(config) if config else {}
    named = own | {key: value for key, value in told.items() if type(value) is int and key not in own}
    turned = [value for key, value in named.items() if re.search(r"rope|rotary", key) and 1 < value < 4096]
    dims = [value for key, value in named.items() if re.search(r"head.*(dim|size)|^d_?k?v?$", key) and 1 < value < 4096]
    heads = [value for key, value in named.items() if re.search(r"head", key) and "dim" not in key and value]
    sizes = [size for child in module.modules() if (size := linear_sizes(child))]
    dims += [out // count for _, out in sizes[:3] for count in heads if out % count == 0]
    turned += [int(dim * factor) for dim in dims for factor in _factors(config)]
    for dim in dict.fromkeys(turned + dims):
        for last in (dim, dim // 2):
            for shape in ((1, TOKENS, last), (TOKENS, last), (1, 1, TOKENS, last), (3, 1, TOKENS, last)):
                yield torch.empty(shape, device="meta"), torch.empty(shape, device="meta")
        yield torch.empty(1, TOKENS, dim // 2, dtype=torch.complex64, device="meta")
        yield torch.empty(TOKENS, dim // 2, dtype=torch.complex64, device="meta")
        yield torch.empty(TOKENS, dim // 2, device="meta")
    for width, _ in sizes[:1]:  # not angles: embeddings of relative positions, as wide as the tokens
        yield torch.empty(1, TOKENS, width, device="meta")
    yield None


def _factors(config: Any) -> list[float]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)] if isinstance(parameters, dict) else []
    found = [mapping.get("partial_rotary_factor") for mapping in [parameters, *nested] if isinstance(mapping, dict)]
    found.append(getattr(config, "partial_rotary_factor", None))
    return [value for value in found if isinstance(value, float)]
