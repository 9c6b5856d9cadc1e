"""One fit at a time, each written down as it comes, by one process or several: a run that was cut off goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pictures
import protocol
import torch
import transformers
from protocol import MANY, OTHER_STYLE, TUNING_SEED, TUNING_SETS, Job, Scale
from rows import ADAPTERS, LIKE, ROWS, SHUFFLED, Row

import steer
from steer import zoo

Record = dict[str, Any]
WAIT = 5.0  # seconds between looks at what the other processes wrote


class Book:
    """Records by key, one JSON line each; several processes may write to one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self.read()

    def read(self) -> None:
        """Take in what others wrote."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.records = {one["key"]: one for one in map(json.loads, lines)}

    def add(self, key: str, record: Record) -> None:
        """Write one line, whole or not at all, unless it is there."""
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.read()
            if key not in self.records:
                file.write(json.dumps({"key": key, **record}) + "\n")
                file.flush()
                self.records[key] = {"key": key, **record}

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that are still to be done."""
        return [job for job in jobs if job.key not in self.records]


class Runs:
    """All fits of one scale; of several workers each takes its own."""

    def __init__(self, scale: Scale, book: Book, worker: int = 0, workers: int = 1) -> None:
        self.scale, self.book, self.worker, self.workers = scale, book, worker, workers
        self.model, self.processor = zoo.load("tiny-clip")
        self.stream = steer.TwoStream(self.model, self.processor)
        self.weights = digest(self.model)
        self._templates_of: dict[tuple[str, int, tuple[str, ...]], str] = {}

    def all(self, until: float = float("inf")) -> None:
        """Everything that is missing; nothing new is begun after `until` (of time.time)."""
        self.book.add("about", self.about())
        for jobs in protocol.jobs(self.scale):
            # in turn: neighbours in the list are of different sets, and cost alike
            for job in self.book.missing(jobs[self.worker :: self.workers]):
                if time.time() > until:
                    return
                started = time.perf_counter()
                made = {**self.one(job), "weights": self.weights}
                self.book.add(job.key, made)
                print(job.key, made.get("right"), f"{time.perf_counter() - started:.1f} s", flush=True)
            if jobs and jobs[0].kind == "tune":
                while self.book.missing(jobs) and time.time() < until:
                    time.sleep(WAIT)
                    self.book.read()

    def about(self) -> Record:
        """What ran: sizes, classes, versions, and a digest of the weights."""
        names = {name: list(pictures.classes(name, self.scale.classes)) for name in self.scale.sets}
        others = {name: list(pictures.classes(name, self.scale.classes, True)) for name in TUNING_SETS}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        told = {"scale": self.scale.plain(), "classes": names, "tuned_on": others if self.scale.full else {}}
        return {**told, "weights": self.weights, **versions}

    def one(self, job: Job) -> Record:
        """A fit, and how many test pictures are then right among how many."""
        if job.kind == "tune":
            return self._tried(job)
        names = list(pictures.classes(job.set, self.scale.classes))
        fitted = protocol.halves(names)[0] if job.kind == "base-new" or job.row == ADAPTERS else names
        row, value = ROWS[job.row], self.chosen(job.row)
        method, record = self._fitted(job, row, fitted, value)
        if job.row == ADAPTERS:
            other, _ = self._fitted(job, ROWS[LIKE[ADAPTERS]], fitted, value)
            return {**record, **self._apart(method, other, job.set, names)}
        parts = {"all": names}
        if job.kind == "base-new":
            parts = dict(zip(("base", "new"), protocol.halves(names), strict=True))
        tests = {part: (among, pictures.pictures(job.set, "test", 0)) for part, among in parts.items()}
        if job.kind == "few-shot" and job.shots == MANY and job.set not in protocol.ONE_STYLE:
            tests[OTHER_STYLE] = (names, pictures.pictures(job.set, "test", 0, OTHER_STYLE))
        return {**record, **self._tested(method, tests)}

    def chosen(self, name: str) -> float | None:
        """The rate (or alpha) that was best on val; the middle one where nothing was tuned."""
        row = ROWS[LIKE.get(name, name)]
        if not row.tries:
            return None
        if not self.scale.full:
            return row.tries[len(row.tries) // 2]
        return max(row.tries, key=lambda value: self._score(row.name, value))

    def _score(self, name: str, value: float) -> tuple[float, float]:
        """Accuracy on val, and where that is the same, likelihood; means over the tuning sets."""
        found = [self.book.records[Job("tune", one, name, TUNING_SEED, value=value).key] for one in TUNING_SETS]
        return sum(one["accuracy"] for one in found), sum(one["log_prob"] for one in found)

    def best_template(self, name: str, seed: int, names: tuple[str, ...]) -> str:
        """The hand-written prompt that is right most often on val pictures of the classes that are fitted."""
        known = self._templates_of
        if (name, seed, names) not in known:
            held = pictures.of(pictures.pictures(name, "val", seed), names)
            with torch.no_grad():
                features = self.stream.image_features(self.stream.pixels([picture for picture, _ in held]))
                scored = {
                    template: _told(self._by_hand(template, names, features), names, held)
                    for template in (protocol.written(one, name) for one in protocol.TEMPLATES)
                }
            known[name, seed, names] = max(scored, key=scored.__getitem__)
        return known[name, seed, names]

    def _by_hand(self, template: str, names: Sequence[str], features: torch.Tensor) -> torch.Tensor:
        texts = self.stream.tokens([template.format(name) for name in names])
        return self.stream.scores(features, self.stream.text_features(texts))

    def _fitted(self, job: Job, row: Row, names: Sequence[str], value: float | None) -> tuple[Any, Record]:
        templates = self._templates(row, job.set, job.seed, tuple(names))
        config = dict(row.config)
        if value is not None and not row.by_gradient:
            config["cache"] = value
        method = steer.create(row.preset, classes=list(names), templates=templates, **config)
        record: Record = {"value": value, **({"template": templates[0]} if row.holds == "best" else {})}
        if not row.learns:
            return method.bind(self.model, self.processor), record
        shots = pictures.of(pictures.pictures(job.set, "train", job.seed), names, job.shots)
        if job.row == SHUFFLED:
            shots = shuffled(shots, job.seed)
        options = {"augment": row.augment} if row.augment else {}
        if row.by_gradient:
            epochs = self.scale.epochs(len(shots))
            options |= {"lr": value, "epochs": epochs, "batch_size": protocol.BATCH, **protocol.OPTIONS}
        if row.preset == "coprompt":
            texts = [protocol.written(one, job.set) for one in protocol.SENTENCES]
            options["sentences"] = {label: [text.format(label) for text in texts] for label in names}
        started = time.perf_counter()
        # all texts in one forward: memory is not what is short here
        method.fit(self.model, self.processor, shots, seed=job.seed, class_batch=1024, progress=False, **options)
        steps = method.provenance.get("training", {}).get("steps", 0)
        return method, {
            **record, "examples": len(shots), "steps": steps, "parameters": method.number_of_parameters(),
            "seconds": round(time.perf_counter() - started, 2),
        }  # fmt: skip

    def _templates(self, row: Row, name: str, seed: int, names: tuple[str, ...]) -> list[str]:
        if row.holds == "best":
            return [self.best_template(name, seed, names)]
        every = [protocol.written(one, name) for one in protocol.TEMPLATES]
        return every if row.holds == "all" else [protocol.A_PHOTO]

    def _tested(self, method: Any, tests: dict[str, tuple[list[str], pictures.Pairs]]) -> Record:
        right, of = {}, {}
        for part, (among, pairs) in tests.items():
            chosen = pictures.of(pairs, among)
            found = method.set_classes(among).predict([picture for picture, _ in chosen], batch_size=100).labels
            right[part] = sum(a == b for a, (_, b) in zip(found, chosen, strict=True))
            of[part] = len(chosen)
        return {"right": right, "of": of}

    def _tried(self, job: Job) -> Record:
        """What a rate is worth on val pictures of classes that are not reported; half of them are fitted."""
        names = protocol.halves(list(pictures.classes(job.set, self.scale.classes, True)))[0]
        method, record = self._fitted(job, ROWS[job.row], names, job.value)
        held = pictures.of(pictures.pictures(job.set, "val", job.seed), names)
        accuracy, log_prob = _told(method.scores([picture for picture, _ in held], batch_size=100), names, held)
        return {**record, "accuracy": round(accuracy, 6), "log_prob": round(log_prob, 6)}

    def _apart(self, one: Any, other: Any, name: str, names: list[str]) -> Record:
        """How far the scores of two methods are apart on the test pictures of all classes."""
        shown = [picture for picture, _ in pictures.of(pictures.pictures(name, "test", 0), names)]
        first, second = (method.set_classes(names).scores(shown) for method in (one, other))
        same = (first.argmax(-1) == second.argmax(-1)).float().mean()
        return {"apart": float((first - second).abs().max()), "same": float(same)}


def shuffled(shots: pictures.Pairs, seed: int) -> pictures.Pairs:
    """The same pictures with the same labels, dealt out at random."""
    labels = [label for _, label in shots]
    random.Random(f"labels {seed}").shuffle(labels)
    return [(picture, label) for (picture, _), label in zip(shots, labels, strict=True)]


def digest(model: torch.nn.Module) -> str:
    """A digest of the weights."""
    made = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        made.update(name.encode() + weight.numpy().tobytes())
    return made.hexdigest()[:16]


def _told(scores: torch.Tensor, names: Sequence[str], pairs: pictures.Pairs) -> tuple[float, float]:
    """Accuracy, and the mean log-probability of the right class, of scores (B, K)."""
    made = scores.log_softmax(-1)
    right = torch.tensor([list(names).index(label) for _, label in pairs])
    return (made.argmax(-1) == right).float().mean().item(), made[torch.arange(len(right)), right].mean().item()
