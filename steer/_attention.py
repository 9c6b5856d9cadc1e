"""Standing between a module and its attention function.

A touched module is given a copy of its config that names an attention function of ours; that one calls the function
that was in use, with the changed queries, keys, values and mask. Nothing else in the model sees the new name: masks are
made as before, and a module that is not touched is not slowed. When the last session on a module ends, the module has
the very config object that it had.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from . import _relative, _weights
from ._lse import masked_lse
from ._params import Ready
from ._relative import Factors, Share
from ._scores import Call, add_bias, add_prefix, merge
from ._step import Place, RowChoice, Stage, Tally, Tap, at_slots
from .errors import MappingError
from .gates import BoundGate, Reading

_numbers = itertools.count()


@dataclass
class Bias:
    """A compiled KeyBias: value (H,) for every head of the module, zero where it was not chosen.

    With `relative` it adds a share of the size of each score.
    """

    place: Place
    choice: RowChoice
    keys: RowChoice
    value: Ready
    gate: BoundGate | None = None
    gate_needs_lse: bool = False
    relative: bool = False
    tally: Tally = field(default_factory=Tally)

    def share(self, call: Call, lse: torch.Tensor | None) -> Share | None:
        """What to add in shares of the scores, or None where no row is chosen."""
        _relative.check(call)
        batch, _, length, _ = call.query.shape
        rows = self.choice.of(batch, length, call.query.device, self.place)
        pair = self.factors(call, lse)
        if pair is None:
            return None
        single = self.choice.one_each(batch, length, call.query.device)
        return Share(*pair, _relative.rows_as_index(rows, batch, length, single, call.query.device))

    def factors(self, call: Call, lse: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The pair a (B or 1, H, T, 1), b (B or 1, 1 or H, S, 1), or None where no row is chosen."""
        query = call.query
        batch, _, length, _ = query.shape
        rows = self.choice.of(batch, length, query.device, self.place)
        if isinstance(rows, str):
            return None
        a = self.value.on(query).view(1, -1, 1, 1)
        if self.gate is not None:
            rows_first = query.transpose(1, 2)
            a = a * self.gate(rows_first, Reading(rows_first, lse)).transpose(1, 2)
        a = a.expand(a.shape[0], -1, length, 1)
        if isinstance(rows, slice) and (rows.start, rows.stop) != (0, length):
            kept = torch.zeros(length, dtype=a.dtype, device=a.device)
            kept[rows] = 1
            a = a * kept.view(1, 1, -1, 1)
        elif isinstance(rows, torch.Tensor):
            a = a * rows[:, None, :, None]
        self.tally.count(batch * length)
        return a, self._key_factor(call, a)

    def _key_factor(self, call: Call, a: torch.Tensor) -> torch.Tensor:
        total = call.key.shape[2]
        positions = self.keys.positions
        assert positions is not None
        frame = self.keys.key_frame(call.key.shape[0], total, a.device, self.place)
        if call.slots is not None:
            return at_slots(positions, frame, call.slots, call.query.shape[1]).to(a.dtype)[..., None]
        asked = self.keys, total, a.dtype
        if asked not in frame.chosen:  # the same for every layer
            chosen = positions.resolve_keys(frame, total)
            b = torch.ones(1, 1, total, device=a.device) if chosen is None else chosen[:, None]
            frame.chosen[asked] = b.to(a.dtype)[..., None]
        found = frame.chosen[asked]
        assert isinstance(found, torch.Tensor)
        return found.to(a.device)


@dataclass
class PrefixRows:
    """A compiled Prefix: keys (H_kv, n, d) and values (H_kv, n, d_v)."""

    place: Place
    keys: Ready
    values: Ready
    tally: Tally = field(default_factory=Tally)

    def __call__(self, call: Call) -> None:
        add_prefix(call, self.keys.on(call.key), self.values.on(call.value))
        self.tally.count(call.query.shape[0] * call.query.shape[2])


@dataclass
class AttentionPlan:
    """What one session does inside one module's attention.

    `wants_query` and `wants_lse` ask for those of the running forward to be kept for gates at `head_out`, as
    (B, T, H, d) and (B, T, H); a module may call its attention several times in one forward, so they are lists.
    """

    queries: list[Stage] = field(default_factory=list)
    keys: list[Stage] = field(default_factory=list)
    values: list[Stage] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    prefixes: list[PrefixRows] = field(default_factory=list)
    keepers: list[Callable[[nn.Module, Call], None]] = field(default_factory=list)
    weights: list[Tap] = field(default_factory=list)
    wants_query: bool = False
    wants_lse: bool = False
    query: list[torch.Tensor] = field(default_factory=list)
    lse: list[torch.Tensor] = field(default_factory=list)

    def take_query(self, shape: torch.Size) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Hand over the kept query and lse, in the layout of a head_out tensor of that shape (..., H, d_v)."""
        query = torch.cat(self.query, dim=1) if len(self.query) > 1 else (self.query[0] if self.query else None)
        lse = torch.cat(self.lse, dim=1) if len(self.lse) > 1 else (self.lse[0] if self.lse else None)
        self.query.clear()
        self.lse.clear()
        if query is not None:
            query = query.reshape(*shape[:-1], query.shape[-1])
        return query, None if lse is None else lse.reshape(shape[:-1])


class AttentionSlot:
    """One module whose attention function is wrapped, for as long as any session needs it."""

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module = module
        self.plans: list[AttentionPlan] = []
        self._before = module.__dict__.get("config")
        if self._before is None:
            raise MappingError(f"{path} ({type(module).__name__}) has no config; its attention cannot be reached")
        name = getattr(self._before, "_attn_implementation", None) or "eager"
        self._original = _current_function(module, name, path)
        self._name = name
        self._causes = name != "eager" and "flex" not in name
        self._key = _Key.like(name, _compares(module, name))
        AttentionInterface._global_mapping[self._key] = self._attend
        config = copy.copy(self._before)
        config.__dict__["_attn_implementation_internal"] = self._key
        if getattr(config, "_attn_implementation", None) is not self._key:
            config._attn_implementation = self._key
        module.__dict__["config"] = config

    def restore(self) -> None:
        """Give the module its own config back and forget the wrapped function."""
        self.module.__dict__["config"] = self._before
        AttentionInterface._global_mapping.pop(self._key, None)

    def _attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        mask = args[0] if args else kwargs.pop("attention_mask", None)
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        call = Call(query, key, value, mask, dict(kwargs), self._name, bool(causal) and self._causes)
        if any(plan.keys or plan.values or plan.biases for plan in self.plans):
            call.slots = _slots(module)
        width = value.shape[-1]
        for plan in self.plans:
            call.query = _through(plan.queries, call.query, None)
            call.key = _through(plan.keys, call.key, call.slots)
            call.value = _through(plan.values, call.value, call.slots)
        self._keep(call)
        keepers = [keeper for plan in self.plans for keeper in plan.keepers]
        as_read = copy.copy(call) if keepers else call
        if any(plan.prefixes or any(bias.relative for bias in plan.biases) for plan in self.plans):
            _crop_unfilled(call)
        factors, shares = self._additions(call)
        for plan in self.plans:
            for prefix in plan.prefixes:
                prefix(call)
                grown = call.key.shape[2]
                factors = [(a, _grown(b, grown)) for a, b in factors]
                shares = [Share(s.a, _grown(s.b, grown), s.rows) for s in shares]

        def original(call: Call) -> Any:
            return self._original(module, call.query, call.key, call.value, call.mask, *args[1:], **call.kwargs)

        taps = [tap for plan in self.plans for tap in plan.weights]
        if taps:
            added = functools.partial(_attended, factors=factors, shares=shares, width=width, original=original)
            _weights.read(taps, call, factors, shares, lambda c: original(c)[0], lambda c: added(c)[0])
        output = _attended(call, factors, shares, width, original)
        for keeper in keepers:
            keeper(module, as_read)
        return output

    def _lse(self, call: Call) -> torch.Tensor:
        """(B, T, H), of the scores before biases and prefixes."""
        causal = call.causal and call.query.shape[2] > 1 and (call.mask is None or getattr(call.mask, "ndim", 4) == 2)
        key = call.key[:, :, : call.query.shape[2]] if causal and not call.fused else call.key
        window = call.kwargs.get("sliding_window") if causal else None
        return masked_lse(call.query, key, call.mask, call.scaling, causal, window).transpose(1, 2)

    def _keep(self, call: Call) -> None:
        for plan in self.plans:
            if plan.wants_query:
                plan.query.append(call.query.transpose(1, 2))
            if plan.wants_lse:
                plan.lse.append(self._lse(call))

    def _additions(self, call: Call) -> tuple[Factors, list[Share]]:
        """What to add to the scores: outer products, and shares of the scores themselves."""
        biases = [bias for plan in self.plans for bias in plan.biases]
        lse = self._lse(call) if any(b.gate_needs_lse for b in biases) else None
        factors = [pair for b in biases if not b.relative and (pair := b.factors(call, lse)) is not None]
        shares = [share for b in biases if b.relative and (share := b.share(call, lse)) is not None]
        return factors, shares


def _grown(b: torch.Tensor, total: int) -> torch.Tensor:
    """A key factor (..., S, 1) with zeros for keys that were put in front."""
    return torch.nn.functional.pad(b, (0, 0, total - b.shape[2], 0))


def _attended(
    call: Call, factors: Factors, shares: list[Share], width: int, original: Callable[[Call], Any]
) -> tuple[Any, ...]:
    """The attention function's output with everything added to the scores."""
    if shares and call.takes_mask:
        call.mask = merge(call, _relative.bias_of(call, factors, shares))
        return original(call)
    plain = Call(**{**vars(call), "kwargs": dict(call.kwargs)}) if shares else call
    extra = add_bias(call, factors) if factors else 0
    output = original(call)
    out = output[0][..., :width] if extra else output[0]
    if shares:
        out = _relative.rewrite(out, plain, factors, shares, lambda part: original(part)[0])
    return (out, *output[1:])


class _Key(str):
    """A name of ours that also answers to the name it stands for.

    Some modules compare the name of their attention function with "eager" or "sdpa" inside their forward and go another
    way for names that they do not know.
    """

    _stands_for = ""

    @classmethod
    def like(cls, name: str, compares: bool) -> str:
        text = f"{name}|steer-{next(_numbers)}"
        if not compares:
            return text
        key = cls(text)
        key._stands_for = name
        return key

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or other == self._stands_for

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _through(steps: list[Stage], x: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
    """Run steps that see (B, T, H, d) on a tensor (B, H, T, d) whose rows stand at `slots`."""
    if not steps:
        return x
    y = x.transpose(1, 2)
    for step in steps:
        step.choice.slots = slots
        y = step(y)
        step.choice.slots = None
    return y.transpose(1, 2)


def _slots(module: nn.Module) -> torch.Tensor | None:
    """Where this layer's keys stand in the sequence, int64 (B or 1, H_kv or 1, S), if some were dropped."""
    cache = module.__dict__.get("_steer_cache")
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", ())
    index = getattr(module, "layer_idx", None)
    if index is None or index >= len(layers) or not hasattr(layers[index], "slots"):
        return None
    slots: torch.Tensor = layers[index].slots()
    return slots


def _crop_unfilled(call: Call) -> None:
    """Drop the slots of a static cache that a causal call without a mask cannot see, as SDPA itself would."""
    length = call.query.shape[2]
    if call.mask is None and call.causal and not call.fused and 1 < length < call.key.shape[2]:
        call.key, call.value = call.key[:, :, :length], call.value[:, :, :length]


def _forward_code(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)


def _compares(module: nn.Module, name: str) -> bool:
    constants = getattr(getattr(_forward_code(module), "__code__", None), "co_consts", ())
    return any(name == c or (isinstance(c, tuple) and name in c) for c in constants)


def _current_function(module: nn.Module, name: str, path: str) -> Callable[..., Any]:
    """The attention function that the module calls now; its own eager one where that is in use."""
    forward = _forward_code(module)
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    scope = getattr(forward, "__globals__", {})
    interface = next((scope[n] for n in names if isinstance(scope.get(n), AttentionInterface)), None)
    if interface is None:
        raise MappingError(f"{path} ({type(module).__name__}) does not use transformers' attention registry")
    eager = next((scope[n] for n in names if "eager" in n and callable(scope.get(n))), None)
    function = interface.get(name, eager)
    if function is None:
        raise MappingError(f"{path}: the attention function {name!r} of {type(module).__name__} was not found")
    return function
