"""Key-value memories: caches that hold some of what was read, where it stood, and go on as if nothing were missing."""

from __future__ import annotations

from ._helping import masks
from .kept import Kept, pick
from .layer import KeptLayer
from .memory import Memory
from .method import MemoryMethod, certificate, read
from .pruning import prunable, prune
from .reading import Divergence, answer_logits, divergence
from .scorer import Chooser, Scorer
from .seen import Seen
from .words import Words

__all__ = [
    "Chooser",
    "Divergence",
    "Kept",
    "KeptLayer",
    "Memory",
    "MemoryMethod",
    "Scorer",
    "Seen",
    "Words",
    "answer_logits",
    "certificate",
    "divergence",
    "masks",
    "pick",
    "prunable",
    "prune",
    "read",
]
