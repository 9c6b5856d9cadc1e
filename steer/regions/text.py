"""Pieces of a prompt's text as positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import positions
from ..errors import InterventionError
from ..positions import Positions
from ..prompts import tokenizer_of
from .searching import find, pick, words_in
from .spans import rows_of, spelled


def text_span(
    processor: Any,
    inputs: Mapping[str, Any],
    text: str | Sequence[str],
    *,
    occurrence: int | None = 0,
    within: str | None = None,
    row: int | None = None,
) -> Positions:
    """The tokens that hold a piece of the prompt.

    Spaces around the piece do not matter. If it is not there letter by letter, case and spaces are overlooked.

    Args:
        processor: the model's processor or tokenizer.
        inputs: what it made: `input_ids` (B, S), and `attention_mask` where rows are padded.
        text: the piece; or one for each row.
        occurrence: which one, from 0, or from the end with -1; None for all of them.
        within: look only inside this longer piece, at its first occurrence.
        row: look in this row alone, and choose nothing in the others; None for all rows.

    Returns:
        `positions.mask` of a bool tensor (B, S) on the device of `input_ids`.

    Raises:
        InterventionError: a row does not have the piece, or not so often; the message shows the nearest one.
    """
    ids, rows = rows_of(inputs, row)
    pieces = [text] * len(ids) if isinstance(text, str) else list(text)
    if len(pieces) != len(ids):
        raise InterventionError(f"{len(pieces)} pieces of text were given for {len(ids)} rows; give one, or one a row")
    chosen = torch.zeros(ids.shape, dtype=torch.bool)
    tokenizer = tokenizer_of(processor)
    for index in rows:
        said, low, high = spelled(processor, inputs, index), 0, None
        if within is not None:
            low, high = pick(find(tokenizer, said.text, within), within, said.text, 0)[0]
        part = said.text[low:high]
        for start, stop in pick(find(tokenizer, part, pieces[index]), pieces[index], part, occurrence):
            chosen[index, said.slots_of(start + low, stop + low)] = True
    return positions.mask(chosen.to(ids.device))


def char_range(
    processor: Any, inputs: Mapping[str, Any], prompt: str, start: int, stop: int, *, row: int = 0
) -> Positions:
    """The tokens that hold some characters of the text that was given to the processor.

    Args:
        processor: the model's processor or tokenizer.
        inputs: what it made: `input_ids` (B, S), and `attention_mask` where rows are padded.
        prompt: the row's text as the processor took it, with one placeholder for each picture, such as
            `apply_chat_template(..., tokenize=False)` gives.
        start: first of its characters.
        stop: the one after the last; pictures between them are chosen too.
        row: which row has this text; nothing is chosen in the others.

    Returns:
        `positions.mask` of a bool tensor (B, S) on the device of `input_ids`.

    Raises:
        InterventionError: the range is empty, outside the prompt, or holds no words; or the prompt is not that of the
            row.
    """
    ids, (index,) = rows_of(inputs, row)
    if not 0 <= start < stop <= len(prompt):
        raise InterventionError(
            f"a range of characters needs 0 <= start < stop <= {len(prompt)}, the length of the prompt; "
            f"got start={start}, stop={stop}"
        )
    said = spelled(processor, inputs, index)
    words = words_in(prompt, start, stop, str(getattr(processor, "image_token", None) or "") or None)
    if not words:
        raise InterventionError(
            f"characters {start} to {stop} are {prompt[start:stop]!r}, which has no words; for pictures use "
            "image_region, or positions.image()"
        )
    tokenizer, found = tokenizer_of(processor), []
    for low, high in (words[0], words[-1]):
        piece = prompt[low:high]
        here = find(tokenizer, prompt, piece, loose=True)
        there = find(tokenizer, said.text, piece, loose=True)
        if not here or len(here) != len(there):
            raise InterventionError(
                f"{piece!r} is {len(here)} time(s) in the prompt given and {len(there)} time(s) in what the tokens of "
                f"row {index} say, so which is which cannot be told: give the text that the processor took, or use "
                f"text_span; the tokens say: {said.text[:400]!r}"
            )
        found.append(there[next(n for n, one in enumerate(here) if one[0] >= low)])
    chosen = torch.zeros(ids.shape, dtype=torch.bool)
    chosen[index, said.slots_of(found[0][0], found[-1][1])] = True
    return positions.mask(chosen.to(ids.device))


def prompt_text(processor: Any, inputs: Mapping[str, Any], *, row: int = 0) -> str:
    """What the tokens of a row say, padding left out and each run of image tokens as one: where `text_span` looks."""
    _, (index,) = rows_of(inputs, row)
    return spelled(processor, inputs, index).text
