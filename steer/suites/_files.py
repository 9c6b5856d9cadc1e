"""The files that suites are published in, and the pictures they are about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..data._files import json_rows
from ..data._pictures import located
from ..errors import FileFormatError, SteerError


def json_lines(path: Path, limit: int | None) -> Iterator[tuple[Any, str]]:
    """What stands on each line, and where, as `path:line`.

    Raises:
        SteerError: it cannot be read.
        FileFormatError: a line is no JSON.
    """
    try:
        with path.open("rb") as lines:
            yield from islice(json_rows(lines, path), limit)
    except OSError as error:
        raise SteerError(f"cannot read {path}: {error.strerror}") from error


def json_document(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        SteerError: it cannot be read.
        FileFormatError: it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SteerError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not JSON: {error}") from error


def picture_folder(images: str | Path | None, suite: str) -> Path:
    """The folder that holds the pictures.

    Raises:
        SteerError: none was given, or there is none.
    """
    if images is None:
        raise SteerError(f"suite {suite!r} asks about pictures; say in which folder they are")
    if not Path(images).is_dir():
        raise SteerError(f"there is no folder {images} with the pictures of suite {suite!r}")
    return Path(images)


def picture(folder: Path, name: str, where: str) -> Any:
    """A picture's path, inside the folder and there.

    Raises:
        FileFormatError: it is not; the message starts with `where`.
    """
    try:
        return located(name, where, folder)
    except SteerError as error:
        raise FileFormatError(str(error)) from error
