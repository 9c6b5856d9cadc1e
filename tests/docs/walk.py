"""Walking through a page as a reader would: every block run in order in one folder, what is printed compared.

A `text` block after a `python` or `bash` block is what that block prints on standard output. A block with the comment
`<!-- not run: why -->` before it is passed over; there is no other mark.

`python -m tests.docs.walk PAGE...` runs pages and writes what came out into them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from .blocks import ROOT

_BLOCK = re.compile(r"(^<!-- not run: \S.*? -->\n)?^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
HOME = "/home/me"
"""Stands in the pages for the folder in which they ran."""
RUN = ("python", "bash")
_NUMBER = re.compile(r"\d+\.\d+|\d+")
_SECONDS = re.compile(r"\d+\.\d+ ?s\b( \(\d+:\d\d:\d\d\))?")


@dataclass(frozen=True)
class Step:
    """One block of a page that runs, and what the page says it prints."""

    language: str
    body: str
    shown: str
    run: bool
    line: int


def steps(text: str) -> list[Step]:
    """The blocks of a page that run, or say why not, in order; a block in another language is an error."""
    found: list[Step] = []
    for block in _BLOCK.finditer(text):
        mark, language, body = block.groups()
        if language in RUN:
            found.append(Step(language, body, "", not mark, text.count("\n", 0, block.start(3))))
        elif language != "text" or not found or found[-1].shown:
            raise ValueError(f"a block of {language} that belongs to none which runs: {body[:80]!r}")
        else:
            found[-1] = replace(found[-1], shown=body)
    return found


def walk(page: Path, folder: Path) -> Iterator[tuple[Step, str]]:
    """Run a page's blocks in a folder, python in one namespace; gives each with what it printed.

    The current folder must be `folder`. Where a block is lines of `steer ...` alone, they run in this process, by the
    function behind the command: to start Python and torch for each would take most of the time. Blocks with anything
    else run in bash, with the `steer` of this environment.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    for step in steps(page.read_text()):
        if not step.run:
            yield step, ""
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if step.language == "python":
                # Behind as many empty lines as stand before it in the page, so that a trace shows its line.
                exec(compile("\n" * step.line + step.body, str(page), "exec"), namespace)
            else:
                _bash(step.body, folder)
        yield step, out.getvalue().replace(str(folder), HOME)


def _bash(body: str, folder: Path) -> None:
    lines = body.replace("\\\n", " ").strip().splitlines()
    if all(line.startswith("steer ") and not set("|&;<>$") & set(line) for line in lines):
        for line in lines:
            _steer(line)
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", body],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise AssertionError(f"{body}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    print(done.stdout, end="")


def _steer(line: str) -> None:
    from steer.cli import main

    problems = io.StringIO()
    try:
        with contextlib.redirect_stderr(problems):
            main(shlex.split(line, comments=True)[1:])
    except SystemExit as left:
        if left.code not in (0, None):
            raise AssertionError(f"{line}\nended with {left.code}: {problems.getvalue()}") from None


def differences(shown: str, printed: str) -> list[str]:
    """Where two outputs differ.

    Words and whole numbers must be the same. Numbers with a point may differ by a tenth of what is shown and 0.005: a
    fit's last digits depend on the processor. Not compared: seconds and milliseconds ("1.2 s", and the columns of a
    table that are headed "s ..." or "ms ..."), spaces, the lines of a table's frame.
    """
    pairs = zip_longest(_lines(shown), _lines(printed), fillvalue="(nothing)")
    return [f"shown:   {a}\nprinted: {b}" for a, b in pairs if not _alike(a, b)]


def _lines(text: str) -> list[str]:
    times: list[int] = []
    found = []
    for line in text.splitlines():
        if line.startswith(("┏", "┡", "└")):
            continue
        if line.startswith(("┃", "│")):
            cells = [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")]
            if line.startswith("┃"):
                times = [i for i, cell in enumerate(cells) if re.match(r"(ms|s) ", cell)]
            line = " | ".join("" if i in times and line.startswith("│") else cell for i, cell in enumerate(cells))
        if line.strip():
            found.append(_SECONDS.sub("s", " ".join(line.split())))
    return found


def _alike(shown: str, printed: str) -> bool:
    if _NUMBER.sub("#", shown) != _NUMBER.sub("#", printed):
        return False
    return all(_near(*pair) for pair in zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True))


def _near(shown: str, printed: str) -> bool:
    if "." not in shown + printed:
        return shown == printed
    return abs(float(shown) - float(printed)) <= 0.1 * abs(float(shown)) + 0.005


def rewrite(page: Path) -> None:
    """Run a page in a folder of its own, and write what its blocks print into it."""
    text, at = page.read_text(), 0
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        for step, printed in list(walk(page, Path(made).resolve())):
            at = text.index(f"```{step.language}\n{step.body}```\n", at) + len(f"```{step.language}\n{step.body}```\n")
            if not step.run:
                continue
            rest = re.sub(r"\A\n```text\n.*?^```\n", "", text[at:], flags=re.DOTALL | re.MULTILINE)
            said = f"\n```text\n{printed.rstrip()}\n```\n" if printed.strip() else ""
            text, at = text[:at] + said + rest, at + len(said)
    page.write_text(text)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        rewrite(ROOT / name)
