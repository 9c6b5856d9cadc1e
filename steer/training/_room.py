"""Before a teacher starts: how much it will keep, and whether there is room for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import PartialState
from rich.console import Console

from ..errors import SteerError


def announce(label: str, size: float, examples: int, folder: Path | None, shown: bool) -> None:
    """Say how much will be kept; refuse what the disk has no room for.

    Args:
        label: who keeps it.
        size: bytes.
        examples: of how many examples.
        folder: where; None for memory.
        shown: say it on standard error.

    Raises:
        SteerError: not enough room on disk.
    """
    if shown and PartialState().is_main_process:
        where = "memory" if folder is None else str(folder)
        words = f"{label}: about {size / 2**20:.2f} MiB of teacher states for {examples} examples in {where}"
        Console(stderr=True, soft_wrap=True).print(words, highlight=False, markup=False)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SteerError(
            f"{label}: the teacher's states need about {size / 2**30:.1f} GiB in {folder}, which has "
            f"{free / 2**30:.1f}; align fewer tokens (rows='answer'), or give a folder on another disk"
        )
