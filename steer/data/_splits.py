"""Which part of a source is meant, and how a source is called in errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import SteerError, unknown_name
from ._tables import is_table


def part(parts: Mapping[str, Any], split: str | None) -> Any:
    """One dataset of a `DatasetDict`; the only one where none is named."""
    if not parts or not all(map(is_table, parts.values())):
        raise SteerError(f"a {type(parts).__name__} is one row or no data at all; give a list of rows")
    if split is None and len(parts) > 1:
        raise SteerError(f"there are several splits: {', '.join(map(str, parts))}; say which, as in split='train'")
    name = next(iter(parts)) if split is None else split
    if name not in parts:
        raise unknown_name("split", name, parts)
    return parts[name]


def refuse_split(split: str | None, source: Any) -> None:
    """Raise where a split is asked for of a source that has none."""
    if split is not None:
        raise SteerError(f"{named(source)} has no splits, so split={split!r} cannot be taken from it")


def named(source: Any) -> str:
    """The source as errors call it: a path as it is, anything else by its type."""
    return str(source) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__}"
