"""On a CPU, results into memory that the process already has.

A large block goes back to the operating system when it is freed, and comes back page by page, zeroed, when the next
one is written. That can take several times as long as the arithmetic, and not always the same. Rows are timed with
freed memory kept; those that the targets are about, in new memory as well, which is how malloc starts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's mallopt, with the values that it starts with. It also starts with a threshold that follows what is freed,
# and which is fixed from the first call of mallopt on: what is to be timed as malloc starts must come before.
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
