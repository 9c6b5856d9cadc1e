"""Run several command lines in one process, each between two marks on standard output and standard error.

    python -m tests.cli.drive LINES.json

LINES.json holds [[name, [word, ...]], ...]. To be run with pipes, or a terminal, where a test wants them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from steer.cli import main

MARK = "=== {} {}"


def say(name: str, what: object) -> None:
    for stream in (sys.stdout, sys.stderr):
        print(MARK.format(name, what), file=stream, flush=True)


if __name__ == "__main__":
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    for name, words in json.loads(Path(sys.argv[1]).read_text()):
        logging.enable_progress_bar()  # a command that turned bars off did so for itself
        say(name, "begins")
        try:
            main(words)
        except SystemExit as left:
            say(name, left.code or 0)
