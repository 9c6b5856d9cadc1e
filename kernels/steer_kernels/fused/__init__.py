"""The operations in Triton, a file each: the kernels, what launches them, and the torch operator around them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

FILES = {
    "shift": "shift",
    "shift_": "shift",
    "head_shift": "head_shift",
    "query_shift": "query_shift",
    "key_bias": "key_bias",
    "jsd": "jsd",
    "token_scores": "token_scores",
    "js_select": "js_select",
    "compact": "compact",
}


def find(name: str) -> Callable[..., Any] | None:
    """The operation of that name; None where there is none in Triton."""
    if name not in FILES:
        return None
    return getattr(importlib.import_module(f".{FILES[name]}", __package__), name)  # type: ignore[no-any-return]
