"""What a row times: ours and all others that give the same, a copy to hold them against, and the tensors for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .compare import differs
from .machine import cache
from .options import Options
from .rows import Row
from .task import Call, Missing, Task

COPY, READ = "copy", "read"
OURS, EAGER, COMPILED = "ours", "eager", "compiled"
# What a round reads and writes is so many times the last cache, by taking turns among as many sets of inputs.
CACHES, MOST_SETS = 4, 32


def agreeing(task: Task, function: Call, given: tuple[Any, ...], row: Row, options: Options) -> dict[str, Call]:
    """The variants that run here and give what ours gives; the others are named in `note` or `error`."""

    def ours(*inputs: Any) -> Any:
        return task.ours(function, *inputs)

    found: dict[str, Call] = {OURS: task.call(ours)}
    wanted = found[OURS](*given)
    plain = task.call(task.eager)
    with _noted(row, "plain torch", torch.OutOfMemoryError):
        wrong = differs(wanted, plain(*given), task.slack)
        if wrong:
            row.error = f"{task.kernel} and the plain formula differ: {wrong}"
            return {}
        found[EAGER] = plain
    if options.compiled and task.compiled and not options.quick:
        with _noted(row, "torch.compile"):
            compiled = task.call(torch.compile(task.eager, dynamic=False, fullgraph=True))
            wrong = differs(compiled(*given), wanted, task.slack)
            if wrong:
                row.error = f"torch.compile of the plain formula is wrong: {wrong}"
            else:
                found[COMPILED] = compiled
    for name, rival in task.rivals.items():
        with _noted(row, name):
            call = rival.make()
            slack = task.slack if rival.tolerance is None else rival.tolerance
            wrong = differs(rival.of_theirs(call(*given)), rival.of_ours(wanted), slack)
            if wrong:
                row.error = f"{name} gives something else: {wrong}"
            else:
                found[name] = call
    return found


@contextmanager
def _noted(row: Row, name: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """What keeps another variant from running is noted, if it is of that kind; it is no error of ours."""
    try:
        yield
    except Missing as missing:
        _note(row, str(missing))
    except torch.OutOfMemoryError:
        _note(row, f"{name}: out of memory")
        torch.cuda.empty_cache()
    except kind as error:
        _note(row, f"{name}: {brief(error)}")


def _note(row: Row, text: str) -> None:
    row.note = f"{row.note}; {text}" if row.note else text


def sets(given: tuple[Any, ...], floor: int, options: Options) -> list[tuple[Any, ...]]:
    """Copies of the inputs: so many that between two uses of one the cache holds others."""
    count = 2 if options.quick else _turns(floor, options.on)
    again = [tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in given) for _ in range(count - 1)]
    return [given, *again]


def _turns(floor: int, device: torch.device) -> int:
    return max(1, min(MOST_SETS, -(-CACHES * cache(device) // floor)))


def bandwidth(task: Task, count: int, device: torch.device) -> dict[str, Call]:
    """A copy into new memory that moves as many bytes as the row must; and a sum that only reads as many."""
    sources = [torch.ones(max(4, task.floor // 2), dtype=torch.uint8, device=device) for _ in range(count)]
    turn = _forever(count)

    def copy(*_: Any) -> torch.Tensor:
        return sources[next(turn)].clone()

    found: dict[str, Call] = {COPY: copy}
    if task.reads:
        wide = [torch.ones(max(1, task.floor // 4), device=device) for _ in range(count)]

        def read(*_: Any) -> torch.Tensor:
            return wide[next(turn)].sum()

        found[READ] = read
    return found


def _forever(count: int) -> Iterator[int]:
    while True:
        yield from range(count)


def brief(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
