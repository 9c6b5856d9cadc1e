"""Ways to do one thing, and what each takes when they do it by turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from attention_settings import BATCH, SEED

from steer_kernels.bench.peak import peak
from steer_kernels.bench.timing import quiet


@dataclass
class Way:
    """One way.

    Attributes:
        run: a call; what it returns is compared with `Case.truth`.
        around: opened around the calls of a round, outside the clock.
        holds: bytes that it needs and that were made before the call.
        compiles: the first call is not like the others.
    """

    run: Callable[[], torch.Tensor]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    holds: int = 0
    compiles: bool = False


@dataclass
class Case:
    """What is measured: sizes for the record, ways, why others were left out, how far a result is off, and whether
    memory is of interest."""

    sizes: dict[str, Any]
    device: torch.device
    ways: dict[str, Way]
    left_out: dict[str, str] = field(default_factory=dict)
    difference: dict[str, Callable[[torch.Tensor], float]] = field(default_factory=dict)
    memory: bool = True


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """The case's record: seconds a call for each way and round, the peak of memory, and the largest difference."""
    rows: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for name, way in case.ways.items():
        try:
            rows[name], counts[name] = _first(case, name, way)
        except (RuntimeError, NotImplementedError) as error:  # out of memory, or not for this device
            case.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    order, shuffle = list(counts), random.Random(SEED).shuffle
    with quiet():
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                rows[name]["seconds"].append(float(f"{_seconds(case.device, case.ways[name], counts[name]):.4g}"))
    return {**case.sizes, "ways": rows, "left_out": case.left_out}


def _first(case: Case, name: str, way: Way) -> tuple[dict[str, Any], int]:
    """Memory and correctness, and how many calls fill a round's time."""
    row: dict[str, Any] = {"seconds": []}
    with way.around():
        if way.compiles:
            way.run()
        kept, given = [], (torch.empty(0, device=case.device),)
        start = time.perf_counter()
        row["bytes"] = peak(lambda _: kept.append(way.run()), given) if case.memory else kept.append(way.run())
        took = time.perf_counter() - start
    if row["bytes"] is not None:
        row["bytes"] += way.holds
    if name in case.difference:
        row["difference"] = float(f"{case.difference[name](kept.pop()):.2g}")
    if took > 20 * BATCH:
        return row, 1
    return row, max(1, min(500, round(BATCH / max(_seconds(case.device, way, 2), 1e-6))))


def _seconds(device: torch.device, way: Way, count: int) -> float:
    """Seconds a call: of this process's one thread on a CPU, that others may share; of the wall on a GPU."""
    cuda = device.type == "cuda"
    now = time.perf_counter if cuda else time.process_time
    with way.around():
        if cuda or count > 1:
            way.run()  # a session's first forward makes its tensors ready
        if cuda:
            torch.cuda.synchronize()
        start = now()
        for _ in range(count):
            way.run()
        if cuda:
            torch.cuda.synchronize()
        return (now() - start) / count
