"""What the commands share: tables, JSON, progress that vanishes in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

Item = TypeVar("Item")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=2))


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
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield from bar.track(items, description=description)


def say(message: str) -> None:
    """One line on standard error, whatever breaks the message has."""
    print(f"steer: {' '.join(message.split())}", file=sys.stderr)


def quiet_in_a_pipe() -> None:
    """Turn off transformers' own loading bars where standard error is no terminal."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
