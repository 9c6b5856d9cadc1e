"""`steer predict`: the classes of pictures, by one method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import SteerError
from ._asking import SAVED, config_option, method_option
from ._labelled import SkipUnreadable, class_names, classes_option
from ._model import BatchSize, Device, Dtype, ModelName, load
from ._output import AsJson, print_json, print_table, progress, quiet_in_a_pipe, say, top_option

if TYPE_CHECKING:
    import torch

# What operating systems leave in folders.
_LITTER = ("thumbs.db", "desktop.ini")
# How many pictures an error names.
_NAMED = 20


def command(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURES", help="Files of pictures, or folders with such.")
    ],
    model: ModelName,
    method: Annotated[str, method_option(f"{SAVED}, or the name of one that needs no fitting")],
    config: Annotated[list[str] | None, config_option("the --method given by name")] = None,
    classes: Annotated[str | None, classes_option("others than the method's")] = None,
    top: Annotated[int, top_option("likeliest classes of each picture")] = 1,
    skip_unreadable: SkipUnreadable = False,
    batch_size: BatchSize = 16,
    device: Device = None,
    dtype: Dtype = None,
    json: AsJson = False,
) -> None:
    """Say which class pictures are of."""
    from ._named import methods_of, reads_of

    quiet_in_a_pipe()
    if reads_of(method) != "labelled":
        raise SteerError(f"{method} does not name classes; steer generate --model M --method {method}")
    names = None if classes is None else class_names(classes)
    readable, problems = _read(pictures)
    if problems and not skip_unreadable:
        listed = "; ".join(problems[:_NAMED]) + ("; ..." if len(problems) > _NAMED else "")
        count = f"{len(problems)} of {len(problems) + len(readable)}"
        raise SteerError(f"{count} pictures cannot be read; --skip-unreadable leaves them out: {listed}")
    for one in problems:
        say(f"left out: {one}")
    if not readable:
        raise SteerError("none of the pictures can be read")
    loaded, processor = load(model, device, dtype)
    # Any, because a method that reads labelled pictures has more than `Method` does.
    found: Any = methods_of(loaded, [method], config or [], "labelled")[method]
    if names is None and not found.classes:
        raise SteerError(f"{method} has learned no classes; name some: --classes cat,dog")
    if names is not None and names != found.classes:
        found.set_classes(names)
    found.bind(loaded, processor)
    chances = _chances(found, readable, batch_size)
    predictions = [_one(path, row, found.classes, top) for path, row in zip(readable, chances, strict=True)]
    if json:
        counts = {"classes": found.classes, "predictions": predictions, "unreadable": problems}
        print_json({"method": method, "model": model, **counts})
        return
    columns = ("picture", "class", "probability", *(("then",) if top > 1 else ()))
    print_table(columns, [_cells(one, top) for one in predictions])


def _read(given: list[Path]) -> tuple[list[Path], list[str]]:
    """The pictures that can be read, folders' files in the order of their names, and what is wrong with the others.

    Raises:
        SteerError: a folder holds no files.
    """
    from ..data import opened

    paths: list[Path] = []
    for one in given:
        inside = _inside(one) if one.is_dir() else [one]
        if not inside:
            raise SteerError(f"the folder {one} holds no pictures")
        paths += inside
    readable, problems = [], []
    for path in progress(paths, "reading"):
        try:
            opened(path)
        except SteerError as error:
            problems.append(str(error))
        else:
            readable.append(path)
    return readable, problems


def _inside(folder: Path) -> list[Path]:
    """Every file in a folder and below, but for hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name.lower() not in _LITTER
    ]


def _chances(method: Any, paths: list[Path], batch_size: int) -> list[torch.Tensor]:
    """For each picture the probabilities of all classes, (K,)."""
    from ..data import opened

    parts = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    return [
        row
        for part in progress(parts, "predicting")
        for row in method.predict([opened(path) for path in part], batch_size=batch_size).probabilities
    ]


def _one(path: Path, chances: torch.Tensor, classes: list[str], top: int) -> dict[str, Any]:
    values, places = chances.topk(min(top, len(classes)))
    best = [
        {"class": classes[place], "probability": value}
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    ]
    return {"picture": str(path), **best[0], "top": best}


def _cells(one: dict[str, Any], top: int) -> tuple[str, ...]:
    first, *rest = cast("list[dict[str, Any]]", one["top"])
    then = ", ".join(f"{other['class']} {other['probability']:.3f}" for other in rest)
    return one["picture"], first["class"], f"{first['probability']:.3f}", *((then,) if top > 1 else ())
