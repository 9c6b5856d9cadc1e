"""A memory is of all heads of the model, also where each of several processes holds some of them.

What a process's cache holds is brought together when a memory is made of it, so that all processes choose the same and
a saved memory is one of the model; a cache that is made of a memory has this process's heads only.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn
from torch.nn.functional import pad

from .._sharding import Share, sharding_of
from ._helping import self_attentions
from .kept import Kept, pick

_own: weakref.WeakKeyDictionary[Kept, Kept] = weakref.WeakKeyDictionary()


def shares_of(model: nn.Module) -> dict[int, Share]:
    """Which KV heads of each layer of the text tower are in this process; empty where all are."""
    from ..session import map_of

    sharding = sharding_of(model)
    if sharding is None:
        return {}
    mixers = self_attentions(map_of(model))
    found = {index: sharding.share(mixer, "head_k") for index, mixer in mixers.items()}
    return {index: share for index, share in found.items() if share is not None}


def whole(kept: Kept, share: Share) -> Kept:
    """What all processes kept of a layer, of what this one did. Every one of them must come here."""
    keys, values = kept.dense(None)
    valid = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device) if kept.valid is None else kept.valid
    more = share.most(kept.width, keys.device) - kept.width
    slots = kept.slots.expand(-1, keys.shape[1], -1)
    keys, values = (share.whole(pad(x, (0, 0, 0, more)), 1) for x in (keys, values))
    slots, valid = (share.whole(pad(x, (0, more)), 1) for x in (slots, valid))
    alike = bool(valid.all()) and bool((slots == slots[:, :1]).all())
    return pick(keys, values, slots[:, :1] if alike else slots, valid)


def own(kept: Kept, share: Share) -> Kept:
    """This process's heads of what was kept of a layer."""
    if kept not in _own:
        keys, values = (share.own(x, 1) for x in kept.dense(None))
        slots = kept.slots if kept.slots.shape[1] == 1 else share.own(kept.slots, 1)
        valid = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device)
        _own[kept] = pick(keys, values, slots, valid if kept.valid is None else share.own(kept.valid, 1))
    return _own[kept]
