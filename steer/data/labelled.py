"""Pictures with the names of their classes: what few-shot classification is fitted and measured on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ..errors import SteerError
from ..examples import Example
from ._class_folders import class_rows
from ._class_names import Names, class_name
from ._label_rows import Row, file_rows, held_rows, iterable, table_rows
from ._pictures import Pictures, located
from ._splits import named, part, refuse_split
from ._tables import RowPictures, is_table

# How many pictures an error or a warning names.
_NAMED = 20


def read_labelled(
    source: Any,
    *,
    image: str = "image",
    label: str = "label",
    names: Names = None,
    split: str | None = None,
    root: str | os.PathLike[str] | None = None,
    check: bool = True,
    skip_unreadable: bool = False,
) -> list[Example]:
    """Read labelled pictures from any of the forms that they come in.

    Args:
        source: one of

            - a folder with a folder of pictures for each class. Underscores in a folder's name become spaces and the
              rest stays. Every file is taken for a picture, except hidden ones.
            - a .csv or .tsv file with a line of names, or a .jsonl file, with a picture's path and a label in each row
            - a Hugging Face `Dataset`, `IterableDataset` or `DatasetDict`; numbers of a `ClassLabel` become its names
            - a list, or another sequence, of mappings with both columns, of pairs (picture, label), or of
              `steer.Example`, which stay as they are; a picture is what `steer.data.read` takes
        image: the column with the picture.
        label: the column with the class.
        names: what labels stand for: a list that they number from 0, a mapping from label to name, or a function of
            the label. For a folder, labels are the folders' names as they are.
        split: a folder between `source` and the class folders, or a part of a `DatasetDict`.
        root: for files, the folder that paths are relative to and that all pictures are in; None is the file's own.
        check: decode each picture once, so that one that cannot be read is found now and not when it is used.
        skip_unreadable: leave out pictures that are missing or cannot be read, with a warning that names them.

    Returns:
        One example a picture: no question, the class's name for an answer, one picture. Pictures of files and datasets
        are opened, turned upright and made RGB each time they are used, and not kept.

    Raises:
        SteerError: nothing there, a class without pictures, no such column, a label without a name, or pictures that
            cannot be read; the message names them.
    """
    if skip_unreadable and not check:
        raise SteerError("skip_unreadable needs check=True: which pictures cannot be read is known by reading them")
    made: list[Example] = []
    seen: dict[str, None] = {}
    problems: list[str] = []
    for index, row in enumerate(_rows(source, image, label, names, split, root)):
        example: Example | None
        if isinstance(row, Example):
            where, example = f"row {index}", row
            _require_labelled(row, where)
        else:
            where = row.where
            name = class_name(row.label, names, where)
            seen[name] = None
            example = _example(row, name, problems)
        problem = _problem(example.images) if check and example is not None else None
        if problem is not None:
            problems.append(problem if problem.startswith(where) else f"{where}: {problem}")
        elif example is not None:
            made.append(example)
            seen[example.answer] = None
    _report(problems, skip_unreadable)
    lost = seen.keys() - {example.answer for example in made}
    if lost:
        raise SteerError(f"none of the pictures of these classes can be read: {', '.join(sorted(lost))}")
    if not made:
        raise SteerError(f"{named(source)} holds no labelled pictures")
    return made


def _rows(
    source: Any, image: str, label: str, names: Names, split: str | None, root: str | os.PathLike[str] | None
) -> Iterable[Row | Example]:
    if isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            return _spaced(class_rows(source, split)) if names is None else class_rows(source, split)
        refuse_split(split, source)
        return file_rows(source, image, label, root)
    if isinstance(source, Mapping):
        return table_rows(part(source, split), image, label, names)
    refuse_split(split, source)
    if is_table(source):
        return table_rows(source, image, label, names)
    items = iterable(source)
    if items is None:
        raise SteerError(
            f"labelled pictures cannot be read from a {type(source).__name__}; "
            "give a folder, a .csv, .tsv or .jsonl file, a Hugging Face dataset or a list"
        )
    return held_rows(items, image, label)


def _spaced(rows: list[Row]) -> list[Row]:
    """Underscores in folders' names as spaces, where no two classes become one by it."""
    folders: dict[str, str] = {}
    for row in rows:
        other = folders.setdefault(row.label.replace("_", " ").strip(), row.label)
        if other != row.label:
            raise SteerError(
                f"the folders {other!r} and {row.label!r} would be one class, as underscores become spaces; rename "
                "one, or say what their names stand for: names={folder: name, ...}"
            )
    return [row._replace(label=row.label.replace("_", " ")) for row in rows]


def _example(row: Row, name: str, problems: list[str]) -> Example | None:
    """The row as an example, or None and one more problem where its picture is not there."""
    picture = row.picture
    if isinstance(picture, list | tuple):
        if len(picture) != 1:
            raise SteerError(f"{row.where} has {len(picture)} pictures; a labelled picture is one")
        picture = picture[0]
    if isinstance(picture, RowPictures):
        images: Sequence[Any] = picture
    else:
        try:
            images = Pictures((located(picture, row.where, row.folder),))
        except SteerError as error:
            problems.append(str(error))
            return None
    # A sequence and no tuple: it opens its picture whenever it is asked for.
    return Example("", name, cast("tuple[Any, ...]", images))


def _require_labelled(example: Example, where: str) -> None:
    if not example.answer.strip() or len(example.images) != 1:
        raise SteerError(
            f"{where} is an example with {len(example.images)} pictures and the answer {example.answer!r:.80}; "
            "a labelled picture is one picture with its class for an answer"
        )


def _problem(images: Sequence[Any]) -> str | None:
    """Why the picture cannot be read; None if it can."""
    if not len(images):
        return "there is no picture"
    try:
        picture = images[0]
        if hasattr(picture, "load"):
            picture.load()  # a PIL image that its caller opened may not have been read yet
    # Pillow raises SyntaxError, ValueError and others of its own for files that are damaged.
    except (SteerError, OSError, SyntaxError, ValueError) as error:
        return str(error)
    return None


def _report(problems: list[str], skip: bool) -> None:
    if not problems:
        return
    listed = "\n".join(problems[:_NAMED]) + ("\n..." if len(problems) > _NAMED else "")
    if not skip:
        raise SteerError(f"{len(problems)} pictures cannot be read; skip_unreadable=True leaves them out:\n{listed}")
    warnings.warn(f"{len(problems)} pictures that cannot be read were left out\n{listed}", stacklevel=3)
