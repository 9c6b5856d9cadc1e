"""Rows with a picture and a label, from files, tables and what a caller holds."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FileFormatError, SteerError, unknown_name
from ..examples import Example
from ._class_names import Names
from ._files import SUFFIX, json_rows
from ._tables import RowPictures, is_table

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Row(NamedTuple):
    """One labelled picture as it was found.

    Attributes:
        where: its place, for errors.
        picture: what `located` takes, a list with one such, or `RowPictures`.
        label: a name or a number.
        folder: pictures are files in it and nowhere else; None where the caller handed the rows over himself.
    """

    where: str
    picture: Any
    label: Any
    folder: Path | None = None


def file_rows(path: str | os.PathLike[str], image: str, label: str, root: Any) -> Iterator[Row]:
    """The rows of a .csv, .tsv or .jsonl file; pictures are in `root`, or beside the file."""
    source = Path(path)
    folder = source.parent if root is None else Path(root)
    if source.suffix != SUFFIX and source.suffix not in _DELIMITERS:
        raise SteerError(
            f"there is no folder {source}, and a file of labelled pictures ends in {', '.join((*_DELIMITERS, SUFFIX))}"
        )
    read = _json if source.suffix == SUFFIX else _separated
    try:
        for row, where in read(source):
            yield _columns(row, image, label, where, folder)
    except OSError as error:
        raise SteerError(f"cannot read {source}: {error.strerror}") from error


def _json(path: Path) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as lines:
        yield from json_rows(lines, path)


def _separated(path: Path) -> Iterator[tuple[dict[str, str], str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=_DELIMITERS[path.suffix], strict=True)
        header: list[str] = []
        try:
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not header:
                    header = [cell.strip() for cell in cells]
                elif cells and len(cells) != len(header):
                    raise FileFormatError(f"{where} has {len(cells)} cells, and the first line has {len(header)}")
                elif cells:
                    yield dict(zip(header, cells, strict=True)), where
        except (csv.Error, UnicodeDecodeError) as error:
            raise FileFormatError(f"{path}, after line {reader.line_num}, is not a table: {error}") from error


def table_rows(table: Any, image: str, label: str, names: Names) -> Iterator[Row]:
    """The rows of a Hugging Face dataset. Where they can be had by number, pictures are decoded when they are used."""
    features = getattr(table, "features", None) or {}
    known = None if names is not None and not _renames(names) else getattr(features.get(label), "names", None)
    if not hasattr(table, "__len__"):
        rows = (_columns(row, image, label, f"row {index}") for index, row in enumerate(table))
    else:
        for column in (image, label):
            _require(column, table.column_names, "the dataset")
        labels = table.select_columns([label])
        # Left undecoded by the dataset, a damaged picture can be told by its row.
        pictures = _undecoded(table, image, features.get(image))
        rows = (
            Row(f"row {index}", RowPictures(pictures, index, image), row[label]) for index, row in enumerate(labels)
        )
    for row in rows:
        yield row if known is None else row._replace(label=_named(row.label, known))


def held_rows(source: Iterable[Any], image: str, label: str) -> Iterator[Row | Example]:
    """Mappings, pairs of picture and label, and examples as they are."""
    for index, row in enumerate(source):
        where = f"row {index}"
        if isinstance(row, Example):
            yield row
        elif isinstance(row, tuple | list) and len(row) == 2:
            yield Row(where, *row)
        else:
            yield _columns(row, image, label, where)


def iterable(source: Any) -> Iterable[Any] | None:
    """The items of an iterable or of what is indexed from 0, as torch's data sets are; None for anything else."""
    if isinstance(source, Iterable):
        return source
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[index] for index in range(len(source)))
    return None


def _columns(row: Any, image: str, label: str, where: str, folder: Path | None = None) -> Row:
    if not isinstance(row, Mapping):
        raise SteerError(f"{where} is a {type(row).__name__}; give pairs of picture and label, or mappings with both")
    for column in (image, label):
        _require(column, row, where)
    return Row(where, row[image], row[label], folder)


def _require(column: str, there: Iterable[str], where: str) -> None:
    if column not in there:
        raise unknown_name("column", column, there, f"{where} was to have it; other names: image=..., label=...")


def _renames(names: Names) -> bool:
    """Whether it turns names into names, and does not number them as a list does."""
    return isinstance(names, Mapping) or callable(names)


def _named(label: Any, known: list[str]) -> str | None:
    # -1 is written where a test set's labels are withheld.
    return None if label is None or label < 0 else known[label]


def _undecoded(table: Any, column: str, feature: Any) -> Any:
    if not getattr(feature, "decode", False) or not is_table(table):
        return table
    return table.cast_column(column, dataclasses.replace(feature, decode=False))
