"""Where a piece of text stands in a longer one, and what to say where it does not."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from typing import Any

from ..errors import InterventionError
from .spans import Range, decode


def find(tokenizer: Any, text: str, piece: str, *, loose: bool = False) -> list[Range]:
    """Everywhere that a piece stands in a text, without regard to spaces around it.

    Where it is not there letter by letter, case and spaces are overlooked, and last it is looked for as the tokenizer
    itself would write it: some tokenizers make all words lower-case or put spaces between them. `loose` does the
    second at once.
    """
    piece = piece.strip()
    if not piece:
        raise InterventionError("the text to look for is empty; give at least one character that is not a space")
    exact = [] if loose else [(start, start + len(piece)) for start in _starts(text, piece)]
    return exact or _loosely(text, piece) or _loosely(text, _rewritten(tokenizer, piece))


def not_found(piece: str, text: str, found: int, occurrence: int) -> InterventionError:
    """The error for a piece that is not in the prompt, or not as often as was asked."""
    shown = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    if found:
        return InterventionError(
            f"occurrence {occurrence} of {piece!r} was asked for, and the prompt has it {found} time(s) "
            f"(occurrences 0 to {found - 1}); the prompt: {shown!r}"
        )
    low, high = _nearest(text, piece.strip())
    return InterventionError(f"{piece!r} is not in the prompt; nearest: {text[low:high]!r}; the prompt: {shown!r}")


def _starts(text: str, piece: str) -> list[int]:
    starts, at = [], text.find(piece) if piece else -1
    while at >= 0:
        starts.append(at)
        at = text.find(piece, at + 1)
    return starts


def _loosely(text: str, piece: str) -> list[Range]:
    folded, places = _folded(text)
    wanted, _ = _folded(piece)
    return [(places[at], places[at + len(wanted) - 1] + 1) for at in _starts(folded, wanted)]


def _folded(text: str) -> tuple[str, list[int]]:
    """A text without case, spaces and ligatures, and for each character left its place in the text."""
    pairs = [
        (small, place)
        for place, letter in enumerate(text)
        for small in unicodedata.normalize("NFKC", letter).casefold()
        if not small.isspace()
    ]
    return "".join(small for small, _ in pairs), [place for _, place in pairs]


def _rewritten(tokenizer: Any, piece: str) -> str:
    return decode(tokenizer, tokenizer(piece, add_special_tokens=False)["input_ids"]).strip()


def _nearest(text: str, piece: str) -> Range:
    """The part of a text that is likest to a piece: as long as it, around the longest run that both have."""
    folded, wanted = text.lower(), piece.lower()
    match = difflib.SequenceMatcher(None, folded, wanted, autojunk=False).find_longest_match()
    start = max(0, match.a - match.b)
    return start, min(len(text), start + len(piece))


def pick(found: Sequence[Range], piece: str, text: str, occurrence: int | None) -> Sequence[Range]:
    """The occurrence that was asked for, None for all; raises where there is none."""
    if occurrence is None and found:
        return found
    wanted = occurrence or 0
    if not -len(found) <= wanted < len(found):
        raise not_found(piece, text, len(found), wanted)
    return [found[wanted]]


def words_in(prompt: str, start: int, stop: int, placeholder: str | None) -> list[Range]:
    """The ranges of characters between placeholders that are not blank."""
    parts, at = [], start
    for part in prompt[start:stop].split(placeholder):
        parts.append((at, at + len(part)))
        at += len(part) + len(placeholder or "")
    return [(low, high) for low, high in parts if prompt[low:high].strip()]
