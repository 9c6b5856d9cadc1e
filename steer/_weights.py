"""The weights of attention, read off from outside: attention is linear in its values.

Where the values are the unit vectors, what comes out are the weights themselves, whatever masks, biases, prefixes,
sinks or caps there are, and in whatever function is in use. The unit vectors go through a few at a time, as wide as
values are, and only the chosen rows are kept: no (T, S) tensor is made. Where a few rows can be asked for alone, with
the mask that they have, no others are worked out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch

from ._frame import Rows
from ._relative import Factors, Share, bias_of, mask_of, rows_of
from ._scores import Call, merge
from ._step import Tap

Attend = Callable[[Call], torch.Tensor]


def read(
    taps: Sequence[Tap], call: Call, factors: Factors, shares: list[Share], original: Attend, added: Attend
) -> None:
    """Give each tap the weights of its rows and heads, (B, R, H, S); nothing where this forward has none of its rows.

    Args:
        taps: they choose among (B, T, H, S).
        call: as it is about to be made; it is not changed.
        factors: what is added to the scores.
        shares: what is added in shares of the scores.
        original: the attention function that was in use, (B, T, H, d_v).
        added: the same with factors and shares; it may change the call that it gets.
    """
    batch, _, length, _ = call.query.shape
    for tap in taps:
        rows = tap.choice.of(batch, length, call.query.device, tap.place)
        if isinstance(rows, str):
            continue
        index = _index(rows, call)
        if index is None:
            picked = ((tap.pick(added(here)), count) for here, count in _units(call))
            parts = [part[..., :count] for part, count in picked if part is not None]
        else:
            heads = slice(None) if tap.place.heads is None else list(tap.place.heads)
            alone = _alone(call, index, factors, shares)
            parts = [original(here)[..., heads, :count] for here, count in _units(alone)]
        weights = torch.cat(parts, dim=-1)
        # As a tap hands rows on that a mask has chosen.
        by_mask = index is not None and isinstance(rows, torch.Tensor)
        tap.keep(tap.place, weights.flatten(0, 1) if by_mask else weights)


def _units(call: Call) -> Iterator[tuple[Call, int]]:
    """The call with unit vectors for values, some at a time, and how many."""
    total, width = call.key.shape[2], call.value.shape[-1]
    for start in range(0, total, width):
        here = copy.copy(call)
        here.kwargs = dict(call.kwargs)
        if "dropout" in here.kwargs:
            here.kwargs["dropout"] = 0.0
        count = min(width, total - start)
        units = call.value.new_zeros(total, width)
        units[start : start + count, :count].fill_diagonal_(1)
        here.value = units.expand(*call.value.shape[:2], -1, -1)
        yield here, count


def _index(rows: Rows, call: Call) -> torch.Tensor | None:
    """Rows as int64 (B, R), where they are fewer than all and the function takes any mask; else None."""
    batch, _, length, _ = call.query.shape
    plain = call.mask is None or (isinstance(call.mask, torch.Tensor) and call.mask.ndim == 4)
    # Whatever else is as long as the queries, such as a table of distances, would have to be cut too.
    known = call.implementation in ("sdpa", "eager") and plain and call.kwargs.get("position_bias") is None
    if rows is None or isinstance(rows, str) or not known:
        return None
    if isinstance(rows, slice):
        found = torch.arange(*rows.indices(length), device=call.query.device).expand(batch, -1)
    else:
        counts = rows.sum(dim=1)
        if bool((counts != counts[0]).any()):
            return None
        found = rows.nonzero()[:, 1].view(batch, -1)
    return found if 0 < found.shape[1] < length else None


def _alone(call: Call, index: torch.Tensor, factors: Factors, shares: list[Share]) -> Call:
    """The call of some rows by themselves, with their own mask and everything that is added to it."""
    alone = copy.copy(call)
    alone.query, alone.mask, alone.causal = rows_of(call.query, index), mask_of(call, index), False
    alone.kwargs = {**call.kwargs, "scaling": call.scaling, "is_causal": False}
    if factors or shares:
        alone.mask = merge(alone, bias_of(call, factors, shares, index))
    return alone
