"""What the commands share of writing: tables, JSON, files, progress that vanishes in a pipe."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from ..errors import SteerError

Item = TypeVar("Item")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Png = Annotated[Path | None, typer.Option("--png", metavar="FILE", help="A picture to write.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A page to write, to point at things in.")]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="A table to write, as CSV.")]


def out_option(what: str, metavar: str = "FOLDER") -> Any:
    """The option `--out`, which says where `what` is saved; to be put into an `Annotated`."""
    return typer.Option("--out", metavar=metavar, help=f"Where to save {what}.")


def top_option(what: str, least: int = 1) -> Any:
    """The option `--top`, so many of `what`; to be put into an `Annotated`."""
    return typer.Option("--top", min=least, help=f"So many of the {what}.")


def check_file(path: Path | None) -> None:
    """Raise where a file cannot be written at a path, before anything is run for it; None is not asked for."""
    if path is not None:
        from ..files import in_a_folder

        in_a_folder(path)


def check_drawing() -> None:
    """Raise where pictures cannot be drawn because matplotlib is not there: now, and not after an hour."""
    from ..memory.pictures import _matplotlib

    _matplotlib()


def check_folder(path: Path, what: str) -> None:
    """Raise where `--out` cannot be a folder to save `what` in: now, and not after the work."""
    if path.exists() and not path.is_dir():
        raise SteerError(f"{path} is a file; --out is the folder to save {what} in")
    above = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not above.is_dir():
        raise SteerError(f"{above} is a file, so {what} cannot be saved in {path}")
    if not os.access(above, os.W_OK):
        raise SteerError(f"{above} cannot be written to, so {what} cannot be saved in {path}")


def print_json(data: Any) -> None:
    """One JSON document on standard output; numbers that JSON cannot write, NaN and infinities, are null."""
    print(json.dumps(_plain(data), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table on standard output; never wrapped to a terminal's width in a pipe."""
    console = console_out()
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def console_out() -> Console:
    """Standard output as a rich console; wide where it is no terminal, so that nothing is cut."""
    return Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False, markup=False, highlight=False)


def progress(items: Sequence[Item], description: str) -> Iterator[Item]:
    """The items, with a progress bar on standard error that is gone afterwards and never there in a pipe."""
    from ..fitting import track

    return track(items, description)


def say(message: str) -> None:
    """One line on standard error, whatever breaks the message has."""
    print(f"steer: {' '.join(message.split())}", file=sys.stderr)


def quiet_in_a_pipe() -> None:
    """Turn off transformers' own loading bars, and the hub's notes on each try, where standard error is no terminal."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils import logging as of_the_hub
        from transformers.utils import logging

        logging.disable_progress_bar()
        of_the_hub.set_verbosity_error()


def _plain(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(one) for one in data]
    return data
