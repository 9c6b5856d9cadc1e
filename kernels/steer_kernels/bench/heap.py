"""On a CPU, results into memory that the process already has.

A large block goes back to the operating system when it is freed, and comes back page by page, zeroed, when the next
one is written: several times as long as the arithmetic, and by no means always the same. A session that runs in a
model reuses its memory more or less; a benchmark that let this in would time it and nothing else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's mallopt, with the values that it starts with.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
TRIM_AT_START, MMAP_AT_START = 128 * 1024, 65536


@contextmanager
def kept() -> Iterator[bool]:
    """Within the block, freed memory stays with the process; gives whether that can be had (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        yield False
        return
    done = bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
    try:
        yield done
    finally:
        mallopt(MMAP_MAX, MMAP_AT_START)
        mallopt(TRIM_THRESHOLD, TRIM_AT_START)
