"""Examples from where people keep them: lists, JSON Lines files beside their pictures, Hugging Face datasets.

Labelled pictures too, from a folder per class or a table (`labelled`), with what few-shot classification asks for:
shots and halves of classes (`few_shot`), and pictures changed at random (`perturb`).

Everything becomes a list of `steer.Example`. Pictures stay where they are until a prompt is made of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from ..errors import SteerError
from ..examples import Example
from ._columns import Columns
from ._files import read_file, read_split
from ._pictures import opened
from ._rows import row_example
from ._splits import named, part, refuse_split
from ._tables import is_table, read_table
from ._writing import write
from .few_shot import classes_of, few_shot, split, split_classes
from .labelled import read_labelled
from .perturb import flip, rand_augment, random_resized_crop

__all__ = [
    "classes_of",
    "few_shot",
    "flip",
    "opened",
    "rand_augment",
    "random_resized_crop",
    "read",
    "read_labelled",
    "split",
    "split_classes",
    "write",
]


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
        raise SteerError(f"{named(source)} holds no examples")
    return found


def _read(source: Any, split: str | None, columns: Columns, limit: int | None) -> list[Example]:
    if isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            return read_split(source, split, columns, limit)
        refuse_split(split, source)
        return read_file(source, columns, limit)
    if isinstance(source, Mapping):
        return read_table(part(source, split), columns, limit)
    refuse_split(split, source)
    if is_table(source):
        return read_table(source, columns, limit)
    if not isinstance(source, Iterable):
        raise SteerError(
            f"examples cannot be read from a {type(source).__name__}; "
            "give a list, a folder, a .jsonl file or a Hugging Face dataset"
        )
    return [row_example(row, columns, f"row {index}") for index, row in enumerate(islice(source, limit))]
