"""The most bytes of tensors that are alive while a memory is built, seen at every operation of torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from measuring import Case, Record
from protocol import DELTA, OURS, PUBLISHED, WHOLE, Row
from runs import Runs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steer.memory import Memory

CHUNK = 2


class Alive(TorchDispatchMode):
    """Counts the storages that operations inside the block return, for as long as they are used.

    What an operation allocates for itself and frees before it returns is not seen.

    Attributes:
        peak: the most bytes alive at once.
        largest: bytes of the largest one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = self._now = 0
        self._held: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage(), given)
        return out

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        # a view of what was there before, such as a weight, is nothing new
        if key in self._held or key in given:
            return
        size = storage.nbytes()
        self._held[key] = weakref.finalize(storage, self._gone, key, size)
        self._now += size
        self.peak, self.largest = max(self.peak, self._now), max(self.largest, size)

    def _gone(self, key: int, size: int) -> None:
        self._held.pop(key, None)
        self._now -= size


def measure(runs: Runs) -> Record:
    """By number of parts: peaks of each way to build a memory, the whole context's bytes, and the memory's own."""
    setting = runs.setting
    task = setting.longest[0]
    chunk, setting.chunk = setting.chunk, CHUNK
    found = {}
    for shots in setting.peak:
        case = Case(setting, task, shots, 0)
        found[str(shots // CHUNK)] = _of(case)
    setting.chunk = chunk
    return {"task": task, "chunk": CHUNK, "parts": found}


def _of(case: Case) -> dict[str, Any]:
    made: dict[str, Any] = {"tokens": case.whole.length, "whole": case.whole.nbytes}
    whole = case.words.context(case.demonstrations, case.shots)[0]
    ways: dict[str, Callable[[], Memory]] = {"read at once": lambda: Memory.empty(case.model).read(case.model, whole)}
    for family, options in ((PUBLISHED, {}), (OURS, {}), (WHOLE, {"end_to_end": True})):
        row = Row(family, "delta", DELTA, options)
        ways[family] = lambda row=row: case.build(row.method())
    for name, build in ways.items():
        with Alive() as alive:
            memory = build()
        made[name] = {"peak": alive.peak, "largest": alive.largest, "memory": memory.nbytes}
    return made
