"""For tests of plugins: tiny models of every architecture of transformers."""

from __future__ import annotations

from ._models import FAMILIES, architectures, tiny

__all__ = ["FAMILIES", "architectures", "tiny"]
