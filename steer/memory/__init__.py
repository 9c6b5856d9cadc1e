"""Key-value memories: caches that hold some of what was read, where it stood, and go on as if nothing were missing."""

from __future__ import annotations

from ._helping import masks
from .kept import Kept, pick
from .layer import KeptLayer
from .memory import Memory
from .pruning import prunable, prune
from .seen import Seen

__all__ = ["Kept", "KeptLayer", "Memory", "Seen", "masks", "pick", "prunable", "prune"]
