"""Run a ghost of one attention module to see what its attention function receives."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .ghost import Call, Trace, ghost, mark, probing
from .modules import linear_sizes, settings

TOKENS, STATES = 7, 5  # lengths of the sequence and of another tower's states: primes that no head count divides into
_STATES = re.compile(r"states|hidden|context|memory|media|latent|features|encoder|key|value|source|kv|^query")
_NOT_STATES = re.compile(r"past|cache|mask|position|output|layer|dropout|length|bias|indices|topk|ids|shape|size|grid")
_ROTARY = re.compile(r"position_embed|rotary|rope|freqs|^cos$|^sin$|^pos_emb")


@dataclass(frozen=True)
class Probe:
    """One successful run: the calls of the attention function and the linear layers that ran on its result."""

    calls: tuple[Call, ...]
    after: tuple[str, ...]


def states_parameters(module: nn.Module) -> list[str]:
    """Parameters of the forward that can carry another tower's states (not the first, which is the residual stream)."""
    names = [name for name in _parameters(module)][1:]
    return [name for name in names if _STATES.search(name) and not _NOT_STATES.search(name)]


def probe(module: nn.Module, states: tuple[str, ...] = ()) -> Probe | None:
    """What the attention function of `module` receives, or None where no guess at its arguments runs.

    Args:
        module: the attention module, on any device.
        states: parameters of its forward that are given another tower's states.
    """
    widths = [sizes for child in module.modules() if (sizes := linear_sizes(child))]
    for arguments in _guesses(module, states, widths):
        trace: Trace = Trace()
        configs: dict[int, Any] = {}
        twin = ghost(module, trace, configs)
        try:
            with probing(trace, configs):
                type(twin).forward(twin, **arguments)
        except Exception:  # a wrong guess may fail in any way; a run that got as far as the attention call is enough
            if not trace.calls:
                continue
        if trace.calls:
            return Probe(tuple(trace.calls), tuple(trace.after))
    return None


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    from .modules import forward_of

    parameters = inspect.signature(forward_of(module)).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: value for name, value in parameters.items() if name != "self" and value.kind not in kinds}


def _guesses(module: nn.Module, states: tuple[str, ...], widths: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Arguments for the forward, likeliest first."""
    parameters = _parameters(module)
    ins = list(dict.fromkeys(size[0] for size in widths))
    outs = [size[1] for size in widths]
    own = list(dict.fromkeys(width for width in ins[:2] + ins[-1:]))
    own.sort(key=lambda width: width not in outs)  # what comes in also goes out
    rotary = [None] if not any(_ROTARY.search(name) for name in parameters) else list(_rotaries(module))
    for width, shape, angles in itertools.product(own, _shapes(), rotary):
        for other in ins if states else [width]:
            yield {
                name: value
                for position, (name, parameter) in enumerate(parameters.items())
                if (value := _value(name, parameter, position, width, other, shape, angles, states)) is not _SKIP
            }


def _shapes() -> list[tuple[int, ...]]:
    return [(1, TOKENS), (TOKENS,), (1, 1, TOKENS)]


_SKIP = object()


def _value(name, parameter, position, width, other, shape, angles, states):  # type: ignore[no-untyped-def]
    """A value for one parameter of an attention forward."""
    if position == 0:
        return mark(torch.empty(*shape, width, device="meta"), frozenset(), frozenset({"own"}))
    if name in states:
        return mark(torch.empty(1, STATES, other, device="meta"), frozenset(), frozenset({"states"}))
    if _ROTARY.search(name) and angles is not None:
        return angles[0] if name == "cos" else angles[1] if name == "sin" else angles
    if "cu_seqlens" in name:
        return torch.tensor([0, TOKENS], dtype=torch.int32)
    if "max_seqlen" in name:
        return TOKENS
    if "position_ids" in name or name == "positions":
        return torch.arange(TOKENS, device="meta")[None]
    if parameter.default is not inspect.Parameter.empty:
        return _SKIP
    if "mask" in name or "past" in name or "cache" in name:
        return None
    if _STATES.search(name) and not _NOT_STATES.search(name):
        return mark(torch.empty(*shape, width, device="meta"), frozenset(), frozenset({"own"}))
    if parameter.annotation in (bool, "bool"):
        return False
    return None


def _rotaries(module: nn.Module) -> Iterator[Any]:
    """Rotary angles in the layouts that attention modules take, for every width that can be a head's."""
    own = settings(module)
    config = next((value for value in vars(module).values() if hasattr(value, "to_dict")), None)
    named = {**{key: value for key, value in vars(config or object).items() if type(value) is int}, **own} if config else own
    dims = [value for key, value in named.items() if re.search(r"rope|rotary", key) and 1 < value < 4096]
    dims += [value for key, value in named.items() if re.search(r"head.*(dim|size)|^d_?k?v?$", key) and 1 < value < 4096]
    heads = [value for key, value in named.items() if re.search(r"head", key) and "dim" not in key and value]
    sizes = [size for child in module.modules() if (size := linear_sizes(child))]
    dims += [out // count for _, out in sizes[:3] for count in heads if out % count == 0]
    rotated = [int(dim * factor) for dim in dims for factor in _factors(config)]
    for dim in list(dict.fromkeys(rotated + dims)):
        for last in (dim, dim // 2):
            for shape in ((1, TOKENS, last), (TOKENS, last), (1, 1, TOKENS, last), (3, 1, TOKENS, last)):
                yield torch.empty(shape, device="meta"), torch.empty(shape, device="meta")
        yield torch.empty(1, TOKENS, dim // 2, dtype=torch.complex64, device="meta")
        yield torch.empty(TOKENS, dim // 2, dtype=torch.complex64, device="meta")
        yield torch.empty(TOKENS, dim // 2, device="meta")
    yield None


def _factors(config: Any) -> list[float]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)] if isinstance(parameters, dict) else []
    found = [mapping.get("partial_rotary_factor") for mapping in [parameters, *nested] if isinstance(mapping, dict)]
    found.append(getattr(config, "partial_rotary_factor", None))
    return [value for value in found if isinstance(value, float)]
