"""One cell of the comparison at a time, each written down as it comes, so that a run that was cut off goes on."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import controls
from protocol import ORDERS, SEEDS, SHOTS, Row
from settings import Data, Setting

import steer
from steer import fitting, prompts
from steer._content import prompts_digest

Record = dict[str, Any]
FIT = {"patience": None, "progress": False}
SHOWN = ("accuracy", "log_prob", "seconds", "choice")
FEW = 16
PARTS = ("keys", "heads", "layers")


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
            print(key, {name: record.get(name) for name in SHOWN}, flush=True)
        return self.records[key]


class Runs:
    """All runs of one setting."""

    def __init__(self, setting: Setting, book: Book) -> None:
        self.setting, self.book = setting, book
        self._fitted: dict[str, tuple[steer.Method, float]] = {}

    def task(self, task: str, only: Sequence[str] = ()) -> None:
        """Baselines and every row of one task."""
        for seed in SEEDS:
            self._baselines(task, seed)
        for row in self.setting.rows():
            if only and row.name not in only:
                continue
            choice = self._choose(task, row)
            for seed in SEEDS:
                self._final(task, row, choice, seed)
            if row.name in controls.OF and task in self.setting.controlled:
                self._controls(task, row, choice)

    def orders(self, task: str, only: Sequence[str]) -> None:
        """The same demonstrations in several orders: in the prompt, and as examples to fit on."""
        data = self.setting.data(task, 0)
        chosen = data.train[:FEW]
        for turn in range(ORDERS):
            mixed = random.Random(f"order {turn}").sample(chosen, len(chosen))
            shown = [prompts.Prompt(query, tuple(mixed[:8])) for query in data.test]
            key = f"{self._key(task)}/order/icl-8/{turn}"
            self.book.once(key, lambda shown=shown: self._scored(shown))
            for row in self.setting.rows():
                if row.name in only:
                    choice = self._choose(task, row)
                    again = replace(data, train=mixed)
                    key = f"{self._key(task)}/order/{row.name}/{turn}"
                    self.book.once(
                        key, lambda row=row, choice=choice, again=again: self._run(task, row, choice, again, 0)
                    )

    def fitted(self, task: str, row: Row) -> steer.Method:
        """A row's method as chosen, under seed 0."""
        return self._fit(task, row, self._choose(task, row), self.setting.data(task, 0), 0)[0]

    def _key(self, task: str) -> str:
        return f"{self.setting.name}/{task}"

    def _baselines(self, task: str, seed: int) -> None:
        data = self.setting.data(task, seed)
        bare = [prompts.Prompt(query) for query in data.test]
        self.book.once(f"{self._key(task)}/zero-shot/{seed}", lambda: {**self._scored(bare), "examples": 0})
        for shots in SHOTS:
            told = self.setting.demonstrations(task, data.train, shots, seed).for_queries(data.test)
            key = f"{self._key(task)}/icl-{shots}/{seed}"
            self.book.once(key, lambda told=told, shots=shots: {**self._scored(told), "examples": shots})

    def _choose(self, task: str, row: Row) -> dict[str, Any]:
        """What a row does best with on dev, under seed 0."""
        where = self.setting.searched.get(task, task)
        data = self.setting.data(where, 0)
        asked = self.setting.batches([prompts.Prompt(query) for query in data.dev])
        found = []
        for number, choice in enumerate(row.tries()):

            def run(choice: dict[str, Any] = choice) -> Record:
                method, seconds = self._fit(where, row, choice, data, 0)
                if row.name == "savs":
                    right = _right(method.answer(self.setting.model, self.setting.processor, data.dev), data.dev)
                    return {"choice": choice, "accuracy": sum(right) / len(right), "log_prob": 0.0, "seconds": seconds}
                scores = fitting.score(self.setting.model, asked, method)
                log_prob = float(scores.log_prob.mean())
                return {"choice": choice, "accuracy": scores.accuracy, "log_prob": log_prob, "seconds": seconds}

            found.append(self.book.once(f"{self._key(where)}/try/{row.name}/{number}", run))
        best = max(found, key=lambda one: (one["accuracy"], one["log_prob"]))
        return dict(best["choice"])

    def _final(self, task: str, row: Row, choice: dict[str, Any], seed: int) -> None:
        def run() -> Record:
            return self._run(task, row, choice, self.setting.data(task, seed), seed)

        self.book.once(f"{self._key(task)}/{row.name}/{seed}", run)

    def _run(self, task: str, row: Row, choice: dict[str, Any], data: Data, seed: int) -> Record:
        method, seconds = self._fit(task, row, choice, data, seed)
        bare = [prompts.Prompt(query) for query in data.test]
        if row.name == "savs":
            right = _right(method.answer(self.setting.model, self.setting.processor, data.test), data.test)
            scored = {"accuracy": sum(right) / len(right), "right": _bits(right)}
        else:
            scored = self._scored(bare, method)
        return {
            **scored,
            "choice": choice,
            "seconds": seconds,
            "examples": len(data.train),
            "parameters": sum(value.numel() for value in method.tensors.values()),
            "bytes": sum(value.numel() * value.element_size() for value in method.tensors.values()),
            "trained": row.fitted,
            "damage": {} if row.name == "savs" else self.setting.damage(method),
            "dev": method.provenance.get("training", {}).get("best_dev"),
        }

    def _fit(self, task: str, row: Row, choice: dict[str, Any], data: Data, seed: int) -> tuple[steer.Method, float]:
        """The method, fitted, and the seconds that took; the very same fit is not done twice."""
        examples = prompts_digest(prompts.Prompt(one) for one in (*data.train, *data.dev))
        key = json.dumps([row.name, row.base, choice, examples, seed, task])
        if key not in self._fitted:
            self._fitted[key] = self._fit_anew(task, row, choice, data, seed)
        method, seconds = self._fitted[key]
        return copy.deepcopy(method), seconds

    def _fit_anew(
        self, task: str, row: Row, choice: dict[str, Any], data: Data, seed: int
    ) -> tuple[steer.Method, float]:
        configuration = {**row.base, **{key: value for key, value in choice.items() if key != "lr"}}
        started = time.perf_counter()
        if self.setting.template is not None:
            configuration["template"] = self.setting.template
        method = controls.create(row.method, **configuration)
        options: dict[str, Any] = {"progress": False, "seed": seed}
        if row.reads:
            (inner,) = (one for one in self.setting.rows() if one.name == row.reads)
            method = method.over(self._fit(task, inner, self._choose(task, inner), data, seed)[0])
        if row.name not in ("icv", "savs"):
            options["dev"] = data.dev
        if row.fitted:
            told = self.setting.demonstrations(task, data.train, 8, seed)
            options |= {**FIT, "lr": choice["lr"], "max_steps": self.setting.steps, "demonstrations": told}
            options |= {
                "batch_size": self.setting.batch_size,
                "eval_every": -(-self.setting.steps // self.setting.looks),
            }
            options["teacher_folder"] = self.book.path.parent / "teacher"
        method.fit(self.setting.model, self.setting.processor, data.train, **options)
        return method, round(time.perf_counter() - started, 2)

    def _controls(self, task: str, row: Row, choice: dict[str, Any]) -> None:
        for seed in SEEDS:
            keys = {name: f"{self._key(task)}/{row.name}:{name}/{seed}" for name in controls.OF[row.name]}
            wanted = [name for name in keys if self.setting.ablated or not name.startswith("without-")]
            names = [name for name in wanted if keys[name] not in self.book.records]
            if not names:
                continue
            data = self.setting.data(task, seed)
            method, _ = self._fit(task, row, choice, data, seed)
            bare = [prompts.Prompt(query) for query in data.test]
            asked = self.setting.batches([prompts.Prompt(query) for query in data.dev])
            for name in names:
                if name == "shuffled-labels":
                    wrong = replace(data, train=_shuffled(data.train, seed), dev=_shuffled(data.dev, seed))
                    items = [self._fit(task, row, choice, wrong, seed)[0]]
                elif name.startswith("without-"):
                    parts = tuple(part for part in PARTS if part != name.removeprefix("without-"))
                    items = [self._fit(task, replace(row, base={**row.base, "parts": parts}), choice, data, seed)[0]]
                else:
                    items = controls.MAKE[name](self.setting.model, method, asked, seed)
                self.book.once(keys[name], lambda items=items, bare=bare: self._scored(bare, *items))

    def _scored(self, made: Sequence[prompts.Prompt], *items: Any) -> Record:
        scores = fitting.score(self.setting.model, self.setting.batches(made), *items)
        return {
            "accuracy": scores.accuracy,
            "log_prob": float(scores.log_prob.mean()),
            "right": _bits(scores.right.tolist()),
        }


def _bits(right: Iterable[bool]) -> str:
    return "".join("1" if one else "0" for one in right)


def _right(answers: Sequence[str], queries: Sequence[steer.Example]) -> list[bool]:
    return [answer == query.answer for answer, query in zip(answers, queries, strict=True)]


def _shuffled(examples: Sequence[steer.Example], seed: int) -> list[steer.Example]:
    """The examples with one another's answers."""
    answers = random.Random(f"labels {seed}").sample([one.answer for one in examples], len(examples))
    return [replace(one, answer=answer) for one, answer in zip(examples, answers, strict=True)]
