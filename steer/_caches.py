"""The names under which modules of transformers take and give a cache; 5.24 began to call it `cache`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")


def cache_name(given: Mapping[str, Any]) -> str | None:
    """The name by which a call or an output has a cache; None where it has none."""
    return next((name for name in CACHES if given.get(name) is not None), None)


def cache_of(given: Mapping[str, Any]) -> Any:
    """The cache of a call or of an output, or None."""
    name = cache_name(given)
    return None if name is None else given[name]
