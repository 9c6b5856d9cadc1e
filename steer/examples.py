"""The one form in which demonstrations, training examples and queries are handed around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One question about zero or more pictures, with its answer.

    Attributes:
        question: the user's words, without image placeholders.
        answer: the words that are right; empty for a query whose answer is wanted.
        images: pictures in reading order, as PIL images (or whatever the model's processor takes).
    """

    question: str
    answer: str = ""
    images: tuple[Any, ...] = ()
