"""JSON Lines files, alone or as the splits of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import FileFormatError, SteerError, unknown_name
from ..examples import Example
from ._columns import Columns
from ._rows import row_example

SUFFIX = ".jsonl"


def read_split(folder: str | os.PathLike[str], split: str | None, columns: Columns, limit: int | None) -> list[Example]:
    """The examples of a folder's one file, or of the one that has the split's name.

    Raises:
        SteerError: there is no such file, or no telling which.
    """
    names = splits(folder)
    if not names:
        raise SteerError(f"the folder {folder} holds no {SUFFIX} file; a data folder has data{SUFFIX} or one per split")
    if split is None and len(names) > 1:
        raise SteerError(f"{folder} has several splits: {', '.join(names)}; say which, as in split={names[0]!r}")
    name = names[0] if split is None else split
    if name not in names:
        raise unknown_name("split", name, names, f"a split of {folder} is a file {name}{SUFFIX}")
    return read_file(Path(folder) / f"{name}{SUFFIX}", columns, limit)


def splits(folder: str | os.PathLike[str]) -> list[str]:
    """The names of a folder's files, without their ending."""
    return sorted(path.stem for path in Path(folder).glob(f"*{SUFFIX}") if not path.name.startswith("."))


def read_file(path: str | os.PathLike[str], columns: Columns, limit: int | None) -> list[Example]:
    """The examples of one file; its pictures are in its folder.

    Raises:
        SteerError: it cannot be read.
        FileFormatError: a line that is no example; the message has file, line and reason.
    """
    source = Path(path)
    if source.suffix != SUFFIX:
        raise SteerError(f"there is no folder {source}, and the name of a data file ends in {SUFFIX}")
    try:
        with source.open("rb") as lines:
            return [_example(*row, columns, source.parent) for row in islice(json_rows(lines, source), limit)]
    except OSError as error:
        raise SteerError(f"cannot read {source}: {error.strerror}") from error


def _example(row: Any, where: str, columns: Columns, folder: Path) -> Example:
    try:
        return row_example(row, columns, where, folder)
    except SteerError as error:
        raise FileFormatError(str(error)) from error


def json_rows(lines: Any, path: Path) -> Iterator[tuple[Any, str]]:
    """What stands on each line of a file that is open for bytes, and where, as `path:line`."""
    # Bytes, because text would also be split at characters that may stand inside a JSON string.
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_no_constant), where
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{where} is not a line of JSON: {error}") from error


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
