"""Hugging Face datasets, known by what they do: `datasets` itself is never imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from ..errors import SteerError
from ..examples import Example
from ._columns import Columns
from ._pictures import located, opened
from ._rows import row_example, words_of


def is_table(source: Any) -> bool:
    """Whether it has named columns, as a `Dataset` or an `IterableDataset` has."""
    return hasattr(source, "column_names") and hasattr(source, "select_columns")


def read_table(table: Any, columns: Columns, limit: int | None) -> list[Example]:
    """The examples of a table. Where rows can be had by number, pictures are decoded when they are used."""
    # An IterableDataset also has `__getitem__`, for columns; only what has a length has rows by number.
    if not hasattr(table, "__len__"):
        return [row_example(row, columns, f"row {index}") for index, row in enumerate(islice(table, limit))]
    found = columns.find(table.column_names, "the dataset")
    words = table.select_columns([name for part, name in found.items() if name is not None and part != "images"])
    pictures = found["images"]
    made = []
    for index, row in enumerate(islice(words, limit)):
        question, answer = words_of(row, found, f"row {index}")
        # A sequence and no tuple: it reads its row whenever a picture is asked for.
        images = () if pictures is None else cast("tuple[Any, ...]", RowPictures(table, index, pictures))
        made.append(Example(question, answer, images))
    return made


@dataclass(frozen=True, eq=False)
class RowPictures(Sequence[Any]):
    """The pictures in one row of a table, read from it whenever they are asked for."""

    table: Any
    row: int
    column: str

    def __len__(self) -> int:
        return len(self._sources())

    def __getitem__(self, index: Any) -> Any:
        chosen = self._sources()[index]
        return tuple(map(self._opened, chosen)) if isinstance(index, slice) else self._opened(chosen)

    def _opened(self, source: Any) -> Any:
        try:
            return opened(source)
        except SteerError as error:
            raise SteerError(f"row {self.row}: {error}") from error

    def _sources(self) -> list[Any]:
        value = self.table[self.row][self.column]
        values = [] if value is None else value if isinstance(value, list | tuple) else [value]
        return [located(one, f"row {self.row}", None) for one in values]
