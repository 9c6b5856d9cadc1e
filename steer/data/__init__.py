"""Examples from where people keep them: lists, JSON Lines files beside their pictures, Hugging Face datasets.

Everything becomes a list of `steer.Example`. Pictures stay where they are until a prompt is made of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from ..errors import SteerError, unknown_name
from ..examples import Example
from ._columns import Columns
from ._files import read_file, read_split
from ._rows import row_example
from ._tables import is_table, read_table
from ._writing import write

__all__ = ["read", "write"]


def read(
    source: Any, *, split: str | None = None, columns: Mapping[str, str | None] | None = None, limit: int | None = None
) -> list[Example]:
    """Read examples from any of the forms that data comes in.

    Args:
        source: one of

            - a list of `steer.Example`, or of mappings with the keys below; a picture is a PIL image, a file's path
              (absolute, or from the current directory) or `{"bytes": ..., "path": ...}`
            - a folder with a `*.jsonl` file, or such a file: one JSON object with these keys on each line, pictures
              named by their paths inside the folder
            - a Hugging Face `Dataset`, `IterableDataset` or `DatasetDict` with these columns

            The keys: `question`; `answer`, or `answers`, a list whose first is taken; `images`, a list, or `image`.
        split: which file of a folder (`train.jsonl` is "train"), or which part of a `DatasetDict`; needed only where
            there are several.
        columns: other names for the keys, as in `{"question": "q"}`; None as a name says that there is no such column.
        limit: how many examples at most, from the first on.

    Returns:
        One example a row. Pictures read from files and tables are opened, turned upright and made RGB each time they
        are used, and not kept.

    Raises:
        SteerError: nothing there, no such split, or a row that is no example; the message has file, line and reason.
    """
    if limit is not None and limit < 1:
        raise SteerError(f"limit is {limit}; it must be 1 or more, or None for everything")
    wanted = Columns(columns or {})
    found = _read(source, split, wanted, limit)
    if not found:
        raise SteerError(f"{_named(source)} holds no examples")
    return found


def _read(source: Any, split: str | None, columns: Columns, limit: int | None) -> list[Example]:
    if isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            return read_split(source, split, columns, limit)
        _refuse_split(split, source)
        return read_file(source, columns, limit)
    if isinstance(source, Mapping):
        return read_table(_part(source, split), columns, limit)
    _refuse_split(split, source)
    if is_table(source):
        return read_table(source, columns, limit)
    if not isinstance(source, Iterable):
        raise SteerError(
            f"examples cannot be read from a {type(source).__name__}; "
            "give a list, a folder, a .jsonl file or a Hugging Face dataset"
        )
    return [row_example(row, columns, f"row {index}") for index, row in enumerate(islice(source, limit))]


def _part(parts: Mapping[str, Any], split: str | None) -> Any:
    """One dataset of a `DatasetDict`; the only one where none is named."""
    if not parts or not all(map(is_table, parts.values())):
        raise SteerError(f"a {type(parts).__name__} is one row or no data at all; give a list of rows")
    if split is None and len(parts) > 1:
        raise SteerError(f"there are several splits: {', '.join(map(str, parts))}; say which, as in split='train'")
    name = next(iter(parts)) if split is None else split
    if name not in parts:
        raise unknown_name("split", name, parts)
    return parts[name]


def _refuse_split(split: str | None, source: Any) -> None:
    if split is not None:
        raise SteerError(f"{_named(source)} has no splits, so split={split!r} cannot be taken from it")


def _named(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"the {type(source).__name__}"
