"""Choosing what a layer's cache keeps, in the forward in which its prompt ends, and again while text is written."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from .._frame import Frame
from .._scores import Call
from .._step import Place, RowChoice, Tally
from ..ops import Keep
from ._helping import STASH, Masks, cache_layer
from .layer import KeptLayer
from .pruning import kept_layer, stays_whole
from .seen import Seen


@dataclass
class Keeper:
    """A compiled `ops.Keep` of one layer.

    Rows that an assistant model guessed may be taken back. So the choice is among what is settled: the prompt, where it
    ends, and later everything up to the first row of a forward.
    """

    place: Place
    choice: RowChoice
    op: Keep
    helper: Masks
    order: int
    count: int
    tally: Tally = field(default_factory=Tally)
    _queries: torch.Tensor | None = None
    _since: int = 0
    """The slot of the first of the queries."""
    _chosen_at: int = 0
    _before: int = 0
    """The slot where what came after an earlier memory begins; the memory itself stays."""

    def __call__(self, module: nn.Module, call: Call) -> None:
        """Look at a call of the attention function whose keys are in the cache already."""
        found = cache_layer(module.__dict__.get(STASH), module)
        if found is None or type(found[0][found[1]]) not in (DynamicLayer, KeptLayer) or stays_whole(module):
            return
        layers, index = found
        batch, _, length, _ = call.query.shape
        frame = self.choice.frame(batch, length, call.query.device)
        settled = self._due(frame, call.query)
        if settled is None:
            return
        seen = self._seen(layers[index], frame, call, settled)
        keep = self.op.function(seen)
        self._chosen_at = settled
        self.tally.count(batch * seen.key.shape[2])
        if keep is not None and not bool(keep.all()):
            layers[index] = _chosen(layers[index], keep, frame.offset + frame.length - settled, self.helper)
        if self.op.every is None:
            self._queries = None

    def _due(self, frame: Frame, query: torch.Tensor) -> int | None:
        """The slot up to which is chosen in this forward, or None where nothing is."""
        end = frame.offset + frame.length
        if frame.offset < frame.prompt_length <= end:
            self._queries, self._since = query, frame.offset
            return frame.prompt_length
        if self.op.every is None or end <= frame.prompt_length:
            return None
        self._remember(query, frame.offset)
        settled = frame.offset + 1
        return settled if settled - self._chosen_at >= self.op.every else None

    def _remember(self, query: torch.Tensor, offset: int) -> None:
        """Hold this forward's queries and as many before them as are asked for, without those that were taken back."""
        held = query[:, :, :0] if self._queries is None else self._queries[:, :, : max(offset - self._since, 0)]
        held = held[:, :, max(held.shape[2] + 1 - self.op.window, 0) :]
        self._queries, self._since = torch.cat([held, query], dim=2), offset - held.shape[2]

    def _seen(self, layer: Any, frame: Frame, call: Call, end: int) -> Seen:
        assert self._queries is not None
        guesses = frame.offset + frame.length - end
        key, value = call.key, call.value
        if isinstance(layer, KeptLayer):
            slots, valid = layer.slots(), layer.valid()
            if slots.shape[-1] != key.shape[2]:
                # another choice was made in this forward, and this one is among what is left
                key, value = layer.whole()
        else:
            slots, valid = torch.arange(key.shape[2], device=key.device)[None, None], None
        if frame.offset < frame.prompt_length:
            self._before = min(layer.seen, frame.offset) if isinstance(layer, KeptLayer) else 0
        width = key.shape[2] - guesses
        key, value, slots = key[:, :, :width], value[:, :, :width], slots[..., :width]
        shape = key.shape[:3]
        fresh = slots >= self._before
        read = torch.full((shape[0],), end - self._before, device=slots.device)
        real = torch.ones(shape, dtype=torch.bool, device=key.device) if valid is None else valid[..., :width]
        queries = self._queries[:, :, : end - self._since]
        rows = torch.arange(end - queries.shape[2], end, device=key.device)
        query_real = torch.ones(shape[0], rows.numel(), dtype=torch.bool, device=key.device)
        if frame.padding is not None:
            tokens = frame.padding[:, :end].to(key.device).bool()
            real = real & tokens[:, None].expand(-1, shape[1], -1).gather(2, slots.expand(shape))
            query_real = tokens[:, rows]
            read = tokens[:, self._before :].sum(-1)
        return Seen(
            queries,
            key,
            value,
            call.scaling,
            slots,
            real,
            fresh.expand(shape),
            rows,
            query_real,
            self.place.layer,
            self.order,
            self.count,
            replace(frame, length=end, offset=0).image_rows if self.op.images else None,
            read,
        )


def _chosen(layer: Any, keep: torch.Tensor, guesses: int, helper: Masks) -> KeptLayer:
    """The layer with some of its keys only; the last `guesses` come after what was kept, and can be taken back."""
    if not guesses:
        return kept_layer(layer, keep, helper)
    settled = copy.copy(layer)
    settled.keys, settled.values = layer.keys[:, :, :-guesses], layer.values[:, :, :-guesses]
    made = kept_layer(settled, keep, helper)
    made.keys, made.values = layer.keys[:, :, -guesses:], layer.values[:, :, -guesses:]
    return made
