"""Which tokens a method of this package acts on, once for all that let one choose."""

from __future__ import annotations

from typing import Literal

import steer
from steer import positions

Where = Literal["all", "answer", "last_prompt"]

_ROWS = {"all": positions.all, "answer": positions.answer, "last_prompt": positions.last_prompt}


def rows(where: str) -> steer.Positions:
    """The rows that a field `where` names."""
    return _ROWS[where]()


def check_where(where: str, method: str, known: tuple[str, ...] = tuple(_ROWS)) -> None:
    """Check such a field.

    Raises:
        UnknownNameError: it names no rows; the message lists the names.
    """
    if where not in known:
        raise steer.errors.unknown_name(f"where of method {method!r}", where, known)
