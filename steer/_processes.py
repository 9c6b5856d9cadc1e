"""The processes that share some work, as accelerate knows them: which part is whose, and how they tell each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


def processes_of(worker: Any) -> PartialState:
    """Who else is at work on this: several processes under a launcher, else this one alone.

    accelerate has to be told that the work is done on CPUs: otherwise several processes without an accelerator each
    believe that they are alone.

    Args:
        worker: a model or tensor, on the device where the work is done.
    """
    return PartialState(cpu=worker.device.type in ("cpu", "meta"))


def leave_together(worker: Any) -> None:
    """The end of a program that several processes ran: none leaves while another still talks to it.

    And none through the interpreter's end, where gloo's threads now and then abort a process that is done. What must
    run at exit is for a program of one process to do.

    Args:
        worker: as in `processes_of`.
    """
    state = processes_of(worker)
    if state.num_processes > 1:
        state.wait_for_everyone()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def split_by_tensors(model: Any) -> bool:
    """Whether every process holds a slice of each layer (tensor parallel), so that all must read the same words."""
    return (getattr(model, "_tp_size", None) or 1) > 1


def in_step(mine: Sequence[T], rounds: int, spare: T) -> list[tuple[T, bool]]:
    """So many rounds of work, and whether each one counts: with `spare` where others have more to do than this process.

    Where weights are spread over processes (FSDP, ZeRO), every forward of one needs all of them. Elsewhere a spare
    round takes no time that the others would not take anyway.
    """
    return [(one, True) for one in mine] + [(spare, False)] * (rounds - len(mine))


def longest(length: int, state: PartialState) -> int:
    """The greatest of all processes' numbers."""
    return max(gather_object([length])) if state.num_processes > 1 else length


def of_all(mine: list[T], state: PartialState) -> list[T]:
    """What every process has, that of the first one first."""
    return gather_object(mine) if state.num_processes > 1 else mine


def of_the_first(mine: T, state: PartialState) -> T:
    """What the first process has."""
    if state.num_processes == 1:
        return mine
    found = [mine]
    broadcast_object_list(found)
    return found[0]
