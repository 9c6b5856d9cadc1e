"""`steer eval` of several kinds, one after the other in the same processes, run under `accelerate launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import typer

from steer import _processes
from steer.cli.eval import command


def main(calls: str) -> None:
    """Run every command line in a JSON file; the processes leave after the last one, and not after each."""
    torch.set_num_threads(1)
    leave, _processes.leave_together = _processes.leave_together, lambda model: None
    app = typer.Typer()
    app.command()(command)
    for words in json.loads(Path(calls).read_text()):
        app(words, standalone_mode=False)
    leave(torch.zeros(1))


if __name__ == "__main__":
    main(*sys.argv[1:])
