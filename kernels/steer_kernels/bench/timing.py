"""Times that can be compared: every variant in every round, in another order each time, on inputs that are not cached.

On a GPU the time is the device's: work is queued behind a pause, so that launches are not what is timed, and measured
by events. What the host takes is measured by itself (`host`). On a CPU it is the wall clock, with garbage collection
off.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .task import Call

MOST = 20  # calls in a batch: with more, the queue of launches may fill up and stall the host
CYCLES = 2.0e9  # a GPU's clock, roughly; only the length of the pause depends on it
LONGEST_PAUSE = 0.03
FEWEST = 3
SLOW = 0.3  # seconds of a call that need no second one to be known


class Spread(NamedTuple):
    """Median and quartiles."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Those of some numbers; of one, itself."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


def times(
    variants: Mapping[str, Call],
    inputs: Sequence[tuple[Any, ...]],
    rounds: int,
    batch: float,
    seed: int = 0,
    most: float = float("inf"),
) -> dict[str, list[float]]:
    """Seconds a call of every variant, one number a round; the numbers of a round belong together.

    Args:
        variants: what to time, by name; called with the tensors of one set.
        inputs: sets of equal tensors, used in turn.
        rounds: how often every variant is timed.
        batch: seconds that a variant's calls in a round should take together.
        seed: of the orders.
        most: seconds after which there are fewer rounds, down to FEWEST.
    """
    cuda = inputs[0][0].is_cuda
    batches = {name: _Batch(call, inputs, batch, cuda) for name, call in variants.items()}
    found: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(seed)
    whole = sum(one.seconds for one in batches.values())
    rounds = int(min(rounds, max(FEWEST, most / whole))) if whole else rounds
    with quiet():
        for _ in range(rounds):
            shuffle.shuffle(order)
            for name in order:
                found[name].append(batches[name].time())
    return found


class _Batch:
    """Some calls of one variant: as many as fill the time that was asked for."""

    def __init__(self, call: Call, inputs: Sequence[tuple[Any, ...]], seconds: float, cuda: bool) -> None:
        self._call, self._inputs, self._cuda = call, inputs, cuda
        self._count, self._pause = 1, 0
        self._host = 0.0
        one = self.time()
        if one < SLOW:
            one = self.time()
        self._count = max(1, min(MOST, round(seconds / max(one, 1e-9))))
        if cuda:
            # Behind the first calls, which compile and load, the host's time to queue a batch is known.
            self.time()
            self._pause = int(CYCLES * min(LONGEST_PAUSE, 1.5 * self._host + 2e-5))
        self.seconds = self._count * one

    def time(self) -> float:
        """Seconds a call. Results are kept until the batch ends: their memory is not that of the last call either."""
        results: list[Any] = [None] * min(self._count, len(self._inputs))
        if not self._cuda:
            start = time.perf_counter()
            self._run(results)
            return (time.perf_counter() - start) / self._count
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if self._pause:
            torch.cuda._sleep(self._pause)
        begin.record()
        start = time.perf_counter()
        self._run(results)
        self._host = time.perf_counter() - start
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / self._count

    def _run(self, results: list[Any]) -> None:
        call, inputs, sets, kept = self._call, self._inputs, len(self._inputs), len(results)
        for i in range(self._count):
            results[i % kept] = call(*inputs[i % sets])


def host(variants: Mapping[str, Call], given: tuple[Any, ...], rounds: int, calls: int = 200) -> dict[str, list[float]]:
    """Seconds that the host takes for a call at which the device has next to nothing to do, a number a round."""
    cuda = given[0].is_cuda
    found: dict[str, list[float]] = {name: [] for name in variants}
    with quiet():
        for _ in range(rounds + 1):
            for name, call in variants.items():
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(calls):
                    call(*given)
                found[name].append((time.perf_counter() - start) / calls)
    return {name: seconds[1:] for name, seconds in found.items()}


def graph(call: Call, given: tuple[Any, ...], calls: int = 32) -> Callable[[], None]:
    """A CUDA graph of as many calls as a model has layers, to be replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(*given)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for _ in range(calls):
            call(*given)
    return captured.replay


@contextmanager
def quiet() -> Any:
    """No garbage collection in between."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
