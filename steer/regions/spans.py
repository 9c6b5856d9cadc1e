"""Which characters each token of a prompt holds.

Only the token ids are looked at, because a processor puts many tokens where the text had one placeholder: the words
between pictures are decoded, and each run of image tokens counts as one placeholder.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InterventionError, unknown_name
from ..prompts import tokenizer_of

Range = tuple[int, int]


@dataclass(frozen=True)
class Spelled:
    """A row of tokens as text.

    Attributes:
        text: what the tokens say, padding left out.
        slots: where each token stands in the row, padding counted.
        ranges: the half-open range of characters that each token holds a part of.
    """

    text: str
    slots: tuple[int, ...]
    ranges: tuple[Range, ...]

    def slots_of(self, start: int, stop: int) -> list[int]:
        """The slots of all tokens that share a character with [start, stop)."""
        return [slot for slot, (low, high) in zip(self.slots, self.ranges, strict=True) if low < stop and high > start]


def spell(processor: Any, ids: Sequence[int], mask: Sequence[int], image_id: int | None) -> Spelled:
    """Decode one row of token ids; `mask` is 0 at padding."""
    tokenizer = tokenizer_of(processor)
    slots = [slot for slot, real in enumerate(mask) if real]
    text, ranges = "", []
    for pictured, run in itertools.groupby(slots, key=lambda slot: ids[slot] == image_id):
        tokens = [ids[slot] for slot in run]
        piece, inner = decode(tokenizer, tokens[:1] if pictured else tokens), [(0, 0)]
        inner = [(0, len(piece))] * len(tokens) if pictured else _ranges(tokenizer, tokens, piece)
        ranges += [(low + len(text), high + len(text)) for low, high in inner]
        text += piece
    return Spelled(text, tuple(slots), tuple(ranges))


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """What tokens say, special ones included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _ranges(tokenizer: Any, ids: Sequence[int], text: str) -> list[Range]:
    """The characters of each token of a run: the tokenizer's own offsets where it reads its text back alike."""
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(again["input_ids"]) == list(ids):
            return [(int(low), int(high)) for low, high in again["offset_mapping"]]
    # How much of the text stands firm before each token; one that leaves a letter unfinished holds a part of it.
    said = [decode(tokenizer, ids[:count]) for count in range(len(ids))]
    firm = [len(os.path.commonprefix([text, one])) for one in said]  # noqa: RUF071, no paths here
    ends = [*firm[1:], len(text)]
    return [(low, min(max(high, low + 1), len(text))) for low, high in zip(firm, ends, strict=True)]


def image_token_id(processor: Any) -> int | None:
    """The id of the token that stands in a prompt for part of a picture; None for a plain tokenizer."""
    for holder in (processor, tokenizer_of(processor)):
        found = getattr(holder, "image_token_id", None)
        if isinstance(found, int):
            return found
    token = getattr(processor, "image_token", None)
    found = None if token is None else tokenizer_of(processor).convert_tokens_to_ids(str(token))
    return found if isinstance(found, int) else None


def rows_of(inputs: Mapping[str, Any], row: int | None) -> tuple[torch.Tensor, range]:
    """Token ids (B, S), and the rows that were asked for."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        got = f"a tensor {list(ids.shape)}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise InterventionError(
            f'inputs need "input_ids", a tensor (B, S); got {got}; call the processor with return_tensors="pt"'
        )
    if row is None:
        return ids, range(len(ids))
    if not -len(ids) <= row < len(ids):
        raise unknown_name("row", row, range(len(ids)))
    return ids, range(row % len(ids), row % len(ids) + 1)


def real(inputs: Mapping[str, Any], row: int) -> torch.Tensor:
    """The row of the attention mask, (S,): all ones where there is no mask."""
    mask = inputs.get("attention_mask")
    return (torch.ones_like(inputs["input_ids"]) if mask is None else mask)[row].cpu()


def spelled(processor: Any, inputs: Mapping[str, Any], row: int) -> Spelled:
    """A row of what a processor made, as text."""
    ids, mask = inputs["input_ids"][row].tolist(), real(inputs, row).tolist()
    return spell(processor, ids, mask, image_token_id(processor))
