"""One row of data as an example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..errors import SteerError
from ..examples import Example
from ._columns import Columns
from ._pictures import Pictures, located


def row_example(row: Any, columns: Columns, where: str, folder: Path | None = None) -> Example:
    """An example from a row.

    Args:
        row: a mapping, or already an example.
        columns: which of its keys are what.
        where: the row's place, for errors.
        folder: pictures are files in this folder and nowhere else; None where the caller handed the rows over himself.

    Raises:
        SteerError: it is neither; the message starts with `where`.
    """
    if isinstance(row, Example):
        return row
    if not isinstance(row, Mapping):
        raise SteerError(f"{where} is a {type(row).__name__}; an example has the keys question, answer and images")
    found = columns.find(row, where)
    question, answer = words_of(row, found, where)
    return Example(question, answer, _images(_cell(row, found["images"]), where, folder))


def words_of(row: Mapping[str, Any], found: Mapping[str, str | None], where: str) -> tuple[str, str]:
    """Question and answer; of several answers the first, and none where there is none."""
    question, answer = _cell(row, found["question"]), _cell(row, found["answer"])
    if isinstance(answer, list | tuple):
        if not answer:
            raise SteerError(f"{where}: {found['answer']} is an empty list")
        answer = answer[0]
    answer = "" if answer is None else answer
    for name, value in ((found["question"], question), (found["answer"], answer)):
        if not isinstance(value, str):
            raise SteerError(f"{where}: {name} is {value!r:.80}, which is not a string")
    return question, answer


def _cell(row: Mapping[str, Any], column: str | None) -> Any:
    return None if column is None else row.get(column)


def _images(value: Any, where: str, folder: Path | None) -> tuple[Any, ...]:
    values = [] if value is None else value if isinstance(value, list | tuple) else [value]
    sources = tuple(located(one, where, folder) for one in values)
    # A sequence and no tuple: it opens its pictures whenever they are asked for.
    return cast("tuple[Any, ...]", Pictures(sources)) if sources else ()
