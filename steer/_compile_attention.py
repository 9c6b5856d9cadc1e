"""From interventions inside attention, and on its cache, to what an attention slot or a hook does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from . import _spread
from ._address import Target, resolve
from ._attention import Bias, PrefixRows
from ._params import Ready, Slot
from ._scores import LIMIT
from ._sharding import refuse_training
from ._step import Place, RowChoice, Tally
from .errors import InterventionError, MappingError
from .intervention import Intervention
from .model_map import Attention
from .ops import Apply, Keep, KeyBias, Prefix

if TYPE_CHECKING:
    from ._compile import Compiler


def add_special(compiler: Compiler, item: Intervention, places: list[tuple[Place, Tally]]) -> None:
    """Compile what acts inside attention or on its cache: `key_bias`, `kv_prefix`, `cache`."""
    for target in resolve(item.site, compiler.map):
        mixer = target.attention
        assert mixer is not None
        place = Place(item.site.name, item.site.tower, target.layer.index, item.site.attention, target.heads)
        tally = Tally()
        places.append((place, tally))
        if isinstance(item.op, Keep | KeyBias | Prefix):
            _spread.refuse_masks(place, mixer, compiler.query_share(mixer), compiler.key_share(mixer))
        if isinstance(item.op, Keep):
            compiler.filing.attention_of(in_registry(mixer, place)).keepers.append(
                _keeper(compiler, item, item.op, target, place, tally)
            )
            continue
        if item.site.name == "cache":
            assert isinstance(item.op, Apply)
            share = compiler.key_share(mixer)
            edit = item.op.function if share is None else _spread.whole_cache(item.op.function, share, mixer)
            compiler.filing.cache_edits.setdefault(mixer.path, []).append((place, tally, edit))
            continue
        in_registry(mixer, place)
        if isinstance(item.op, KeyBias):
            compiler.filing.attention_of(mixer).biases.append(
                _bias(compiler, item, item.op, target, mixer, place, tally)
            )
        elif isinstance(item.op, Prefix):
            compiler.filing.attention_of(mixer).prefixes.append(_prefix(compiler, item.op, target, mixer, place, tally))


def _keeper(
    compiler: Compiler, item: Intervention, op: Keep, target: Target, place: Place, tally: Tally
) -> Callable[..., None]:
    from .memory._helping import masks_of
    from .memory._keeping import Keeper

    compiler.plan.towers.add("text")
    compiler.plan.prunes = True
    compiler.tracker.wants_images |= op.images
    choice = RowChoice(None, "text", compiler.tracker)
    assert target.attention is not None
    keys = compiler.key_share(target.attention)
    if keys is not None:
        op = replace(op, function=_spread.whole_choice(op.function, compiler.query_share(target.attention), keys))
    return Keeper(place, choice, op, masks_of(compiler.model), target.place, target.count, tally)


def _bias(
    compiler: Compiler, item: Intervention, op: KeyBias, target: Target, mixer: Attention, place: Place, tally: Tally
) -> Bias:
    total = mixer.num_heads or 1
    chosen = list(target.heads) if target.heads is not None else list(range(total))
    slot = Slot(str(place), target.place, target.count, len(chosen), None)
    share = compiler.query_share(mixer)
    gate_slot = Slot(str(place), target.place, target.count, total, mixer.head_dim)
    if share is not None and _spread.learns(op, item.gate):
        refuse_training(compiler.model, f"training {item.label!r} at the heads")

    def value() -> torch.Tensor:
        # an infinite one times the 0 of a row that was not chosen is NaN
        taken = slot.take("value", op.value, 0).expand(len(chosen)).clamp(-LIMIT, LIMIT)
        of_all = taken.new_zeros(total).index_copy(0, torch.tensor(chosen, device=taken.device), taken)
        return of_all if share is None else share.own(of_all, 0)

    ready = Ready(value, op.value)
    ready.on(torch.empty(0))
    gate = item.gate
    return Bias(
        place,
        compiler.choice(item.site),
        compiler.row_choice(op.keys, item.site.tower),
        ready,
        _spread.bound_gate(gate, gate_slot, share) if gate is not None else None,
        gate is not None and gate.needs_lse,
        op.relative,
        tally,
    )


def _prefix(compiler: Compiler, op: Prefix, target: Target, mixer: Attention, place: Place, tally: Tally) -> PrefixRows:
    share = compiler.key_share(mixer)
    if share is not None and _spread.learns(op):
        refuse_training(compiler.model, "training keys and values at kv_prefix")
    heads, width, value_width = mixer.num_kv_heads, mixer.head_dim, mixer.value_dim

    def take(name: str, value: torch.Tensor, last: int | None) -> torch.Tensor:
        shape = list(value.shape)
        fits = shape[-1] == last and (shape[:-2] in ([heads], [target.count, heads]))
        if not fits:
            raise InterventionError(
                f"{name} has shape {shape} at {place}; expected [{heads}, n, {last}] or "
                f"[{target.count}, {heads}, n, {last}]"
            )
        of_all = value[target.place] if value.ndim == 4 else value
        return of_all if share is None else share.own(of_all, 0)

    keys = Ready(lambda: take("keys", op.keys, width), op.keys)
    values = Ready(lambda: take("values", op.values, value_width), op.values)
    first, second = keys.on(op.keys), values.on(op.values)
    if first.shape[1] != second.shape[1]:
        raise InterventionError(f"{place}: {first.shape[1]} keys but {second.shape[1]} values")
    return PrefixRows(place, keys, values, tally)


def in_registry(mixer: Attention, place: Place) -> Attention:
    """The module itself, or an error where its attention cannot be wrapped."""
    if not mixer.registry:
        raise MappingError(f"{place}: {mixer.path} does not use transformers' attention registry")
    return mixer
