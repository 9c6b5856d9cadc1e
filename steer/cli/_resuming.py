"""Going on with what was interrupted: where checkpoints are, and saying so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ._model import is_main_process
from ._output import say


def checkpoints_option(default: str) -> Any:
    """The option `--checkpoints`; to be put into an `Annotated`."""
    return typer.Option(
        "--checkpoints", metavar="FOLDER", help=f"Where to go on from when interrupted; {default} by default."
    )


@contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """Say how to go on after an interrupt, where there is something to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        if is_main_process() and folder is not None and folder.is_dir() and any(folder.iterdir()):
            say(f"the same command goes on from {folder.absolute()}")
        raise
