"""Choosing what a layer's cache keeps, in the forward in which its prompt ends, and again while text is written."""

from __future__ import annotations

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
from .pruning import _lends, kept_layer
from .seen import Seen


@dataclass
class Keeper:
    """A compiled `ops.Keep` of one layer."""

    place: Place
    choice: RowChoice
    op: Keep
    helper: Masks
    order: int
    count: int
    tally: Tally = field(default_factory=Tally)
    _recent: list[torch.Tensor] = field(default_factory=list)
    _chosen_at: int = 0
    _before: int = 0
    """The slot where what came after an earlier memory begins; the memory itself stays."""

    def __call__(self, module: nn.Module, call: Call) -> None:
        """Look at a call of the attention function whose keys are in the cache already."""
        found = cache_layer(module.__dict__.get(STASH), module)
        if found is None or type(found[0][found[1]]) not in (DynamicLayer, KeptLayer) or _lends(module):
            return
        layers, index = found
        batch, _, length, _ = call.query.shape
        frame = self.choice.frame(batch, length, call.query.device)
        if not self._due(frame, call.query):
            return
        seen = self._seen(layers[index], frame, call)
        keep = self.op.function(seen)
        self._chosen_at = frame.offset + frame.length
        self.tally.count(batch * seen.key.shape[2])
        if keep is not None and not bool(keep.all()):
            layers[index] = kept_layer(layers[index], keep, self.helper)

    def _due(self, frame: Frame, query: torch.Tensor) -> bool:
        end = frame.offset + frame.length
        if frame.offset < frame.prompt_length <= end:
            self._recent = [query] if self.op.every else []
            self._queries = query
            return True
        if self.op.every is None or end <= frame.prompt_length:
            return False
        self._recent.append(query)
        held = torch.cat(self._recent, dim=2)[:, :, -self.op.window :]
        self._recent, self._queries = [held], held
        return end - self._chosen_at >= self.op.every

    def _seen(self, layer: Any, frame: Frame, call: Call) -> Seen:
        end = frame.offset + frame.length
        key, value = call.key, call.value
        if isinstance(layer, KeptLayer) and layer.kept.width + layer.appended != key.shape[2]:
            # another choice was made in this forward, and this one is among what is left
            key, value = layer.whole()
        shape = key.shape[:3]
        if isinstance(layer, KeptLayer):
            slots, valid = layer.slots(), layer.valid()
        else:
            slots, valid = torch.arange(shape[2], device=key.device)[None, None], None
        if frame.offset < frame.prompt_length:
            self._before = min(layer.seen, frame.offset) if isinstance(layer, KeptLayer) else 0
        fresh = slots >= self._before
        read = torch.full((shape[0],), end - self._before, device=slots.device)
        real = torch.ones(shape, dtype=torch.bool, device=key.device) if valid is None else valid
        queries = self._queries
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
