"""The most memory that a call takes beyond its inputs, its result included."""

from __future__ import annotations

import os
from typing import Any

import torch

from .task import Call

# Else the profiler reports its own start and stop on standard error, for every row.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak(call: Call, given: tuple[Any, ...]) -> int | None:
    """Bytes, as torch's allocator counts them; None where this torch cannot say.

    On a CPU they are what the profiler saw allocated and freed, in order: what an operator of torch takes inside
    itself is among it, what a library beneath it takes on its own is not.
    """
    if given[0].is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call(*given)
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call(*given)
        del result
    kineto = getattr(profile.profiler, "kineto_results", None)
    if kineto is None:
        return None
    steps = [(event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]"]
    alive = most = 0
    for _, step in sorted(steps, key=lambda pair: pair[0]):
        alive += step
        most = max(most, alive)
    return most
