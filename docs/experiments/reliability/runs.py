"""One cell of the comparison at a time, each written down as it comes, so that a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import makers
import measures
from data import Data
from protocol import DAMAGE, Row, Sizes
from ways import Way

Record = dict[str, Any]
AIMS = ("objects", "print")


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
            print(key, {k: record[k] for k in ("accuracy", "choice") if k in record}, flush=True)
        return self.records[key]


class Runs:
    """Every row, tuned for each aim and asked everything."""

    def __init__(self, model: Any, processor: Any, book: Book, sizes: Sizes) -> None:
        self.model, self.processor, self.book, self.sizes = model, processor, book, sizes
        self._dev = Data("dev", 0, sizes.dev)
        self._test = {seed: Data("test", seed, sizes.test) for seed in sizes.seeds}
        self._makers = makers.Makers(model, processor, sizes)
        book.once("sizes", lambda: asdict(sizes))

    def baseline(self) -> None:
        """The model alone: what is asked, what it answers, and on dev."""
        way = Way(self.model, self.processor)
        for seed, data in self._test.items():
            self.book.once(f"asked/{seed}", lambda data=data: _asked(data))
            self.book.once(f"none/objects/{seed}", lambda data=data: measures.all_of(way, data))
        self.book.once("asked/dev", lambda: _asked(self._dev))
        for aim in AIMS:
            self.book.once(f"none/{aim}/dev", lambda aim=aim: measures.on_dev(way, self._dev, aim == "print"))

    def row(self, row: Row, aims: Sequence[str] = AIMS) -> None:
        """Tune a row for each aim on dev, then ask it everything under every seed."""
        for aim in (one for one in row.aims if one in aims):
            choice = self._choose(row, aim)
            if choice is not None:
                self.book.once(f"{row.name}/{aim}/dev", partial(self._again, row, aim, choice))
            for seed, data in self._test.items():
                final = partial(self._final, row, aim, choice, data, seed)
                self.book.once(f"{row.name}/{aim}/{seed}", final)

    def _choose(self, row: Row, aim: str) -> Record | None:
        """The best try on dev that does no harm; None if all do."""
        alone = self.book.records[f"none/{aim}/dev"]
        found = []
        for number, choice in enumerate(row.tries()):

            def run(choice: Record = choice) -> Record:
                try:
                    way = self._makers.make(row.name, choice, aim, 0)
                    found = measures.on_dev(way, self._dev, aim == "print")
                    return {"choice": choice, "accuracy": found["accuracy"], "ordinary": found["ordinary"]}
                except Exception as error:
                    if row.kind != "library":
                        raise
                    return {"choice": choice, "error": f"{type(error).__name__}: {error}"}

            found.append(self.book.once(f"{row.name}/{aim}/try/{number}", run))
        ran = [one for one in found if "error" not in one]
        harmless = [one for one in ran if one["ordinary"] >= alone["ordinary"] - DAMAGE]
        return dict(max(harmless, key=lambda one: one["accuracy"])["choice"]) if harmless else None

    def _again(self, row: Row, aim: str, choice: Record) -> Record:
        """The answers on dev of what was chosen, for thresholds."""
        return measures.on_dev(self._makers.make(row.name, choice, aim, 0), self._dev, aim == "print")

    def _final(self, row: Row, aim: str, choice: Record | None, data: Data, seed: int) -> Record:
        if choice is None:
            return {"choice": None}
        way = self._makers.make(row.name, choice, aim, seed)
        return {"choice": choice, **measures.all_of(way, data)}


def _asked(data: Data) -> Record:
    """What the right answers are, and which scene each question is about."""
    found: Record = {}
    for name in measures.YES_NO:
        asked = getattr(data, name)
        found[name] = {
            "yes": "".join("1" if one.example.answer == "yes" else "0" for one in asked),
            "scene": [one.cluster for one in asked],
            "group": [one.group for one in asked],
            "object": [one.example.question.split()[-1].strip("?") for one in asked],
        }
    found["ordinary"] = {"group": [one.group for one in data.ordinary], "scene": [one.cluster for one in data.ordinary]}
    return found
