"""What every kind of `steer eval` does with its answers: keeps them as they come, and writes them at the end."""

from __future__ import annotations

import json as _json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SteerError
from ._output import check_file, print_json


class Output:
    """Where answers are kept as they come, and where everything is written at the end.

    Args:
        out: the JSON file to write, or None.
        answers: the folder that the user wants answers to be kept in; None for one beside `out`, removed at the end.
        json: print JSON.

    Raises:
        SteerError: a place cannot be written to, or a file stands where a folder should be, or the other way round.
    """

    def __init__(self, out: Path | None, answers: Path | None, json: bool) -> None:
        check_file(out)
        if answers is not None and not answers.absolute().parent.is_dir():
            raise SteerError(f"there is no folder {answers.absolute().parent} to write {answers.name} into")
        if answers is not None and answers.exists() and not answers.is_dir():
            raise SteerError(f"{answers} is a file; --answers is a folder, in which each process has a file")
        self.json = json
        self._out, self._wanted = out and out.absolute(), answers
        self.folder = answers if answers is not None or out is None else out.with_name(f"{out.name}.answers")

    def print(self, record: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        """JSON on standard output, if that was asked for."""
        if self.json:
            print_json({**record, "rows": rows})

    def write(self, record: dict[str, Any], rows: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]]) -> None:
        """The file, with every answer; what was kept on the way to it is not needed any more."""
        if self._out is None:
            return
        from ..files import write_whole  # not at the top: it imports torch, which `--help` need not wait for

        write_whole(self._out, (_json.dumps({**record, "rows": rows, "answers": said}, indent=2) + "\n").encode())
        if self._wanted is None and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if not self.json:
            print(f"answers: {self._out}")


def names_of(methods: dict[str, Any]) -> list[str]:
    """What each row is called: the method's name, and where several have it, what the user wrote too."""
    names = [method.name for method in methods.values()]
    return [name if names.count(name) == 1 else f"{name} ({path})" for name, path in zip(names, methods, strict=True)]
