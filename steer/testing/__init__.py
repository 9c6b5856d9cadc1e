"""For tests of plugins: tiny models of every architecture of transformers, and what must hold for any method.

A check raises AssertionError with what it measured, and gives a `Check` that says what it measured where all is well.
"""

from __future__ import annotations

from .._bench import Check
from ._all import check
from ._checks import check_fires, check_identity
from ._decoding import check_decoding
from ._learning import check_learns
from ._models import FAMILIES, architectures, tiny
from ._plugged import plugged
from ._restoring import check_restores
from ._saving import check_saves

__all__ = [
    "FAMILIES",
    "Check",
    "architectures",
    "check",
    "check_decoding",
    "check_fires",
    "check_identity",
    "check_learns",
    "check_restores",
    "check_saves",
    "plugged",
    "tiny",
]
