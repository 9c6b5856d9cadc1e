"""A layer of a cache that remembers where in the sequence its keys stood."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers.cache_utils import DynamicLayer

from ..errors import InterventionError, SteerError
from ._masks import at_slots
from .kept import Kept, pick


class Helper(Protocol):
    """Whoever gives each layer its own mask while a model runs."""

    @property
    def active(self) -> bool: ...


class KeptLayer(DynamicLayer):
    """Kept keys and values in front of those of later tokens.

    `keys` and `values` hold only what was appended; the kept part is shared and never written to, so that any number of
    caches can go on from one memory. Everything that generation does to a cache (appending, beams, cropping) is done to
    the appended part and to `rows`.

    Attributes:
        kept: what was kept.
        seen: the length of the sequence that `kept` was taken from, dropped tokens included.
        rows: which row of `kept` each row of the batch goes on from, or None where they are the same or all go on from
            the only one.
        helper: gives each layer its own mask; without one only layers of equal length work.
        alike: whether all layers of the cache kept equally many in all rows and heads, and no padding.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(
        self,
        kept: Kept,
        seen: int,
        helper: Helper | None = None,
        alike: bool = False,
        rows: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kept, self.seen, self.helper, self.alike, self.rows = kept, seen, helper, alike, rows
        # the appended part begins with no token; a slice of the kept part would keep all of that alive
        batch = kept.batch if rows is None else rows.shape[0]
        self.dtype, self.device = kept.keys.dtype, kept.keys.device
        self.keys = kept.keys.new_empty(batch, kept.heads, 0, kept.keys.shape[-1])
        self.values = kept.values.new_empty(batch, kept.heads, 0, kept.values.shape[-1])
        self.is_initialized = True

    @property
    def unplaced(self) -> bool:
        """Whether keys were dropped and nobody tells an attention where the others stood."""
        helped = self.helper is not None and self.helper.active
        return not helped and self.kept.width != self.seen

    @property
    def appended(self) -> int:
        """How many tokens came after the kept part."""
        return int(self.keys.shape[-2])

    def get_seq_length(self) -> int:
        """The logical length: every token seen, dropped ones included."""
        return self.seen + self.appended

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(number of keys, slot of the first one).

        With a helper masks are made for the whole sequence and each layer's columns are taken from them; without one
        they are made for what is here.

        Raises:
            SteerError: there is no helper, and layers differ.
        """
        if self.helper is not None and self.helper.active:
            return self.get_seq_length() + query_length, 0
        if not self.alike:
            raise SteerError(
                "the layers of this cache kept different tokens, so each needs its own mask: run the model inside "
                "`with steer.memory.masks(model):`, or give `past_key_values=memory` after `memory.bind(model)`"
            )
        return self.kept.width + self.appended + query_length, self.seen - self.kept.width

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and give all keys and values, (B, H_kv, n + appended, d)."""
        if self.keys.shape[0] != key_states.shape[0]:
            self._spread(key_states.shape[0])
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        return self.whole()

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, (B, H_kv, n + appended, d)."""
        keys, values = self.kept.dense(self.rows)
        if keys.shape[0] != self.keys.shape[0]:
            keys, values = (x.expand(self.keys.shape[0], -1, -1, -1) for x in (keys, values))
        if not self.appended:
            return keys, values
        return torch.cat([keys, self.keys], dim=-2), torch.cat([values, self.values], dim=-2)

    def slots(self, more: int = 0) -> torch.Tensor:
        """Where every key stands in the sequence, int64 (B or 1, H_kv or 1, n + appended + more)."""
        kept = self.kept.slots_of(self.rows)
        after = torch.arange(self.seen, self.seen + self.appended + more, device=kept.device)
        return torch.cat([kept, after.expand(*kept.shape[:2], -1)], dim=-1)

    def valid(self, more: int = 0) -> torch.Tensor | None:
        """Which columns hold a key, bool (B, H_kv, n + appended + more), or None where all do."""
        valid = self.kept.valid_of(self.rows)
        return None if valid is None else torch.nn.functional.pad(valid, (0, self.appended + more), value=True)

    def mask(self, mask: Any, length: int, heads: int, batch: int, flash: bool = False) -> Any:
        """This layer's mask, from one (B or 1, 1 or H, T, seen + appended + T) for the whole sequence, or None.

        Args:
            mask: as transformers made it for the attention function in use.
            length: T.
            heads: query heads.
            batch: B.
            flash: the attention function takes padding (B, S) only, and sees to causality itself.
        """
        if self.keys.shape[0] != batch:
            self._spread(batch)
        if mask is None and (length == 1 or flash) and self.kept.valid is None:
            return None
        return at_slots(mask, self.slots(length), self.valid(length), length, heads, flash)

    def keep(self, keep: torch.Tensor, alike: bool = False) -> KeptLayer:
        """The layer that holds only some of these keys; `keep` is bool (B, H_kv, n + appended)."""
        valid = self.valid()
        if valid is not None:
            keep = keep & valid
        keys, values = self.whole()
        return KeptLayer(pick(keys, values, self.slots(), keep), self.get_seq_length(), self.helper, alike)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back appended tokens, given as a negative number.

        Raises:
            InterventionError: more than were appended; what was kept stays.
        """
        if -tokens_to_remove > self.appended:
            raise InterventionError(
                f"{-tokens_to_remove} tokens cannot be taken back: {self.appended} came after what was kept"
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        """Forget what was appended."""
        self.keys, self.values = (x.new_empty(*x.shape[:2], 0, x.shape[-1]) for x in (self.keys, self.values))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follow the beams."""
        self._take(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        self._take(torch.arange(self.keys.shape[0], device=self.keys.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only these rows of the batch go on."""
        every = torch.arange(self.keys.shape[0], device=self.keys.device)
        self._take(every[indices.to(every.device)])

    def _spread(self, batch: int) -> None:
        """A memory of fewer rows serves a larger batch: each row so many times in a row, as beams are laid out."""
        here = self.keys.shape[0]
        if self.appended or batch % here:
            raise InterventionError(f"a batch of {batch} cannot go on from a cache of {here} rows")
        self.batch_repeat_interleave(batch // here)

    def _take(self, indices: torch.Tensor) -> None:
        indices = indices.to(self.keys.device)
        self.keys, self.values = self.keys.index_select(0, indices), self.values.index_select(0, indices)
        if self.kept.batch > 1:
            self.rows = indices if self.rows is None else self.rows[indices]
