"""A folder with one folder of pictures for each class."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import SteerError, unknown_name
from ._label_rows import Row

# What operating systems and archives leave behind.
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")
_TABLES = (".csv", ".tsv", ".jsonl")


def class_rows(folder: str | os.PathLike[str], split: str | None) -> list[Row]:
    """Every file in every class folder, in the order of their names; labels are the folders' names as they are.

    Raises:
        SteerError: no class folders, classes without files, or folders inside a class.
    """
    root = Path(folder)
    classes = _folders(root)
    if split is not None:
        if split not in classes:
            raise unknown_name("split", split, classes, f"a split of {root} is a folder in it")
        root = root / split
        classes = _folders(root)
    tables = [path.name for path in _visible(root) if path.suffix in _TABLES]
    if not classes or (len(classes) == 1 and tables):
        hint = f"; to read a table, give the file itself: {root / tables[0]}" if tables else ""
        raise SteerError(
            f"{root} has {f'one folder, {classes[0]}' if classes else 'no folders in it'}; "
            f"labelled pictures are in one folder for each class{hint}"
        )
    files = {name: _files(root / name) for name in classes}
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise SteerError(f"{root} has classes without a picture: {', '.join(empty)}; remove or fill these folders")
    return [Row(str(root / name), file, name, root) for name, found in files.items() for file in found]


def _files(folder: Path) -> list[str]:
    inside = _folders(folder)
    if inside:
        raise SteerError(
            f"{folder} holds folders ({', '.join(inside[:5])}), and a class holds pictures only; if {folder.name} is a "
            f"split and no class, say split={folder.name!r}"
        )
    return [f"{folder.name}/{path.name}" for path in _visible(folder)]


def _folders(folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise SteerError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [path for path in found if not path.name.startswith(".") and path.name.lower() not in _LITTER]
