"""A page in headless Chromium: what is in it after its scripts ran, and what they complained about."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
)
SECONDS = 40
ATTEMPTS = 2
"""On a machine that is busy the browser sometimes never begins."""
# What pages write to the console, as Chromium logs it: `INFO:CONSOLE:12] "Uncaught Error: ...", source: ... (12)`.
SAID = re.compile(r"INFO:CONSOLE[^\]]*\] (.*)")


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    named = os.environ.get("STEER_CHROMIUM")
    found = named or next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip("needs Chromium: install `chromium`, or give its path as STEER_CHROMIUM")
    return found


@dataclass(frozen=True)
class Opened:
    """A page after its scripts ran.

    Attributes:
        dom: the document as HTML.
        console: every line that the page wrote to the console, errors that nobody caught among them.
    """

    dom: str
    console: list[str]

    def elements(self, name: str, **attributes: str) -> list[Element]:
        """Every element of a name with these attributes, `kind` for class."""
        wanted = {"class" if key == "kind" else key: value for key, value in attributes.items()}
        return [one for one in _parsed(self.dom) if one.name == name and wanted.items() <= one.attributes.items()]


@dataclass
class Element:
    """An element with the elements inside it, at any depth, and its text."""

    name: str
    attributes: dict[str, str]
    inside: list[Element]
    text: str = ""


def opened(page: Path, folder: Path, script: str = "", width: int = 1200, height: int = 900) -> Opened:
    """Open a file, run `script` at its end, and read what became of it.

    Args:
        page: the file.
        folder: an empty place for the browser's profile and for the page with the script.
        script: JavaScript that acts as a user would.
        width: of the window.
        height: of the window.
    """
    if script:
        text = page.read_text()
        page = folder / "with-script.html"
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    dom, log = _run(page, folder, width, height, "--dump-dom")
    return Opened(dom, SAID.findall(log))


def photographed(page: Path, folder: Path, picture: Path, width: int, height: int, *flags: str) -> None:
    """Write a screenshot of a page as a PNG."""
    _run(page, folder, width, height, f"--screenshot={picture}", *flags)


@contextlib.contextmanager
def browsing(address: str, folder: Path, width: int = 1200, height: int = 900) -> Iterator[None]:
    """The browser at an address of this machine for as long as the block lasts, in real time."""
    command = [chromium(), *FLAGS, f"--window-size={width},{height}", "--remote-debugging-port=0"]
    with (folder / "browser.txt").open("w") as log:
        profile = f"--user-data-dir={folder / 'profile'}"
        running = subprocess.Popen([*command, profile, address], stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            _end(running)


def _end(running: subprocess.Popen[bytes]) -> None:
    """All that it started, and nothing else: it has a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def _run(page: Path, folder: Path, width: int, height: int, *flags: str) -> tuple[str, str]:
    """Standard output and standard error of the browser."""
    command = [chromium(), *FLAGS, f"--window-size={width},{height}", "--virtual-time-budget=3000", *flags]
    for attempt in range(ATTEMPTS):
        # Into files: children that outlive the browser hold a pipe open, and one would wait for them.
        out, err = folder / f"out-{attempt}.txt", folder / f"err-{attempt}.txt"
        profile = f"--user-data-dir={folder / f'profile-{attempt}'}"
        with out.open("w") as stdout, err.open("w") as stderr:
            running = subprocess.Popen(
                [*command, profile, page.absolute().as_uri()], stdout=stdout, stderr=stderr, start_new_session=True
            )
            try:
                code = running.wait(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(running)
        if code is not None:
            break
    if code != 0:
        raise AssertionError(f"Chromium ended with {code}: {err.read_text()[-2000:]}")
    return out.read_text(), err.read_text()


VOID = {"meta", "input", "br", "img", "link", "hr"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Element] = []
        self._open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {key: value or "" for key, value in attrs}, [])
        self.found.append(made)
        for one in self._open:
            one.inside.append(made)
        if tag not in VOID:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().name != tag:
            pass

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one.text += data


def _parsed(dom: str) -> list[Element]:
    reader = _Reader()
    reader.feed(dom)
    return reader.found
