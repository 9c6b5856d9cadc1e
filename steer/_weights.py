"""The weights of attention, read off from outside: attention is linear in its values.

Where the values are the unit vectors, what comes out are the weights themselves, whatever masks, biases, prefixes,
sinks or caps there are, and in whatever function is in use. The unit vectors go through a few at a time, as wide as
values are, and only the chosen rows are kept: no (T, S) tensor is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch

from ._scores import Call
from ._step import Tap


def read(taps: Sequence[Tap], call: Call, attend: Callable[[Call], torch.Tensor]) -> None:
    """Give each tap the weights of its rows and heads, (B, R, H, S); nothing where this forward has none of its rows.

    Args:
        taps: they choose among (B, T, H, S).
        call: as it is about to be made; it is not changed.
        attend: the attention function with everything that is added, (B, T, H, d_v); it may change the call it gets.
    """
    batch, _, length, _ = call.query.shape
    live = [tap for tap in taps if not isinstance(tap.choice.of(batch, length, call.query.device, tap.place), str)]
    if not live:
        return
    total, width = call.key.shape[2], call.value.shape[-1]
    found: list[list[torch.Tensor]] = [[] for _ in live]
    for start in range(0, total, width):
        here = copy.copy(call)
        here.kwargs = dict(call.kwargs)
        if "dropout" in here.kwargs:
            here.kwargs["dropout"] = 0.0
        units = call.value.new_zeros(total, width)
        count = min(width, total - start)
        units[start : start + count, :count].fill_diagonal_(1)
        here.value = units.expand(*call.value.shape[:2], -1, -1)
        out = attend(here)
        for tap, parts in zip(live, found, strict=True):
            part = tap.pick(out)
            assert part is not None
            parts.append(part[..., :count])
    for tap, parts in zip(live, found, strict=True):
        tap.keep(tap.place, torch.cat(parts, dim=-1))
