"""What may not happen while a stranger's file is read, seen through Python's audit events and the kernel's counts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Never while reading a file, whatever is in it.
FORBIDDEN = {
    "pickle.find_class": "something is unpickled",
    "os.system": "a shell is started",
    "os.exec": "a program is started",
    "os.posix_spawn": "a program is started",
    "subprocess.Popen": "a program is started",
    "socket.connect": "a connection is made",
    "socket.getaddrinfo": "a name is looked up on the network",
    "ctypes.dlopen": "a library is loaded",
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


@dataclass
class Watch:
    """What was seen.

    Attributes:
        inside: the only folder that may be written to.
        broken: what happened that may not.
        let: events that may happen all the same, as libraries that a command loads.
        paused: whether events are let pass.
    """

    inside: Path
    let: tuple[str, ...] = ()
    broken: list[str] = field(default_factory=list)
    paused: bool = False

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event of Python's, if it is one that may not happen."""
        if event in self.let:
            return
        if event in FORBIDDEN:
            self.broken.append(f"{FORBIDDEN[event]}: {event} {arguments[:2]!r:.200}")
        elif event == "open" and _writes(arguments):
            self._outside(event, arguments[0])
        elif event in CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self._outside(event, path)

    def _outside(self, event: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        # Both sides resolved as strings: the folder of temporary files is a link on some machines.
        name = os.path.realpath(os.fsdecode(path))
        allowed = (os.path.realpath(self.inside), "/dev/null")
        if not name.startswith(allowed) and not name.endswith(".pyc") and "__pycache__" not in name:
            self.broken.append(f"{event} outside the folder: {name:.200}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & WRITES)


_watching: list[Watch] = []
_installed: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and not _watching[-1].paused:
        watch = _watching[-1]
        watch.paused = True  # what noting does is no event
        try:
            watch.see(event, arguments)
        finally:
            watch.paused = False


@contextlib.contextmanager
def watched(inside: Path, let: tuple[str, ...] = ()) -> Iterator[Watch]:
    """Watch this process; afterwards nothing that may not happen has happened.

    Raises:
        AssertionError: something has; the message lists it.
    """
    if not _installed:  # an audit hook cannot be taken back
        sys.addaudithook(_audit)
        _installed.append(True)
    watch = Watch(inside, let)
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.remove(watch)
    assert not watch.broken, watch.broken


class Hang(BaseException):
    """Something took too long; no `Exception`, so that nothing takes it for damage in a file."""


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raise `Hang` inside, where it goes on for longer."""

    def late(*_: Any) -> None:
        raise Hang(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should a callback have swallowed it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or with "VmHWM" the most since `forget_peak`; 0 where no kernel says so."""
    if not STATUS.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Let the kernel count the most memory from now on, where it lets itself be told."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


@contextlib.contextmanager
def bounded(extra: int) -> Iterator[None]:
    """At no moment inside does this process hold so many bytes more than before."""
    forget_peak()
    before = resident()
    yield
    grown = resident("VmHWM") - max(before, 1)
    # Where the peak could not be forgotten, it is of long ago, and the difference says nothing.
    assert not before or not os.access(CLEAR, os.W_OK) or grown < extra, f"{grown / 2**20:.0f} MB more at some moment"
