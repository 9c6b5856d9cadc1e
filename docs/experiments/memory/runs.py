"""One cell of the comparison at a time, each written down as it comes, so that a run that was cut off goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import Case, Record
from protocol import BOTH, DELTA, FULL, OURS, VECTOR, ZERO, Row
from settings import Setting

import steer

VECTOR_FIT = {"max_steps": 40, "lr": 2e-2, "batch_size": 16, "patience": None, "progress": False}
SHOWN = ("accuracy", "share", "seconds")


class Book:
    """Records by key, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.records: dict[str, Record] = {one["key"]: one for one in map(json.loads, lines)}

    def once(self, key: str, make: Callable[[], Record]) -> Record:
        """The record of that key, made now if it is not there."""
        if key not in self.records:
            record = {"key": key, **make()}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.records[key] = record
            print(key, {name: record[name] for name in SHOWN if name in record}, flush=True)
        return self.records[key]

    def missing(self, keys: Sequence[str]) -> bool:
        """Whether something is still to be made."""
        return any(key not in self.records for key in keys)


class Runs:
    """All memories of one setting."""

    def __init__(self, setting: Setting, book: Book) -> None:
        self.setting, self.book = setting, book

    def all(self) -> None:
        """What matters most comes first: bounds, then shares, then the ablation and the vector."""
        for task, every in self.setting.shots.items():
            for shots in every:
                self._each(task, shots, self.setting.bounds(task, shots))
        for task in self.setting.shots:
            self._each(task, self.setting.many(task), self.setting.grid(task))
        for task in self.setting.shots:
            self._each(task, self.setting.many(task), self.setting.ablation(), self.setting.with_vector(task))

    def _each(self, task: str, shots: int, rows: Sequence[Row], vector: bool = False) -> None:
        for seed in self.setting.seeds:
            names = [FULL, ZERO, *(row.name for row in rows), *((VECTOR, BOTH) if vector else ())]
            if not self.book.missing([f"{self.setting.name}/{task}/{shots}/{name}/{seed}" for name in names]):
                continue
            case = Case(self.setting, task, shots, seed)
            self.book.once(case.key(FULL), lambda case=case: _full(case))
            self.book.once(case.key(ZERO), case.zero_shot)
            for row in rows:
                self.book.once(case.key(row.name), lambda case=case, row=row: _pruned(case, row))
            if vector and self.book.missing([case.key(VECTOR), case.key(BOTH)]):
                self._with_vector(case)

    def _with_vector(self, case: Case) -> None:
        """A vector fitted on the same demonstrations: alone, and in one session with a memory of them."""
        started = time.perf_counter()
        vector = steer.create("live", losses={"ce": 1.0}, alpha=1.0, **_template(case))
        vector.fit(case.model, case.processor, case.demonstrations, seed=case.seed, **VECTOR_FIT)
        seconds = time.perf_counter() - started
        alone = steer.memory.Memory.empty(case.model)
        self.book.once(case.key(VECTOR), lambda: {**case.written(alone, vector), "seconds": seconds})
        memory = case.build(Row(OURS, "delta", DELTA, _options(self.setting)).method())
        self.book.once(case.key(BOTH), lambda: {**case.written(memory, vector), **case.size(memory)})


def _template(case: Case) -> dict[str, Any]:
    return {} if case.template is None else {"template": case.template}


def _options(setting: Setting) -> dict[str, Any]:
    grouped = getattr(setting, "grouped", None)
    return {} if grouped is None else {"group": grouped}


def _full(case: Case) -> Record:
    return {**case.measured(case.whole), **case.size(case.whole), "disk": case.on_disk(case.whole)}


def _pruned(case: Case, row: Row) -> Record:
    started = time.perf_counter()
    memory = case.build(row.method())
    seconds = time.perf_counter() - started
    made = {**case.measured(memory), **case.size(memory), "seconds": round(seconds, 3)}
    if row.searches:
        search = memory.info["search"]
        made |= {
            "calibration": case.calibration(memory),
            "disk": case.on_disk(memory),
            "forwards": sum(one["forwards"] for one in search),
            "parts": [one["divergence"] for one in search],
            "aimed": memory.info.get("aimed", row.value),
        }
    return made
