"""The two settings of the comparison: pictures with tiny-vlm, words with a pretrained language model."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import protocol
import torch
import transformers
from protocol import Row

import steer

Examples = list[steer.Example]


class Setting(ABC):
    """A model and its tasks.

    Attributes:
        shots: for each task, the numbers of demonstrations in a context.
        main: the number at which everything is compared; at the others only bounds are.
        chunk: demonstrations that are read at a time.
        peak: demonstrations of 4, 16 and 64 parts, where there are so many.
        longest: the task and number of demonstrations whose time is measured.
        keeps, deltas: shares and bounds that are tried.
    """

    name: str
    shots: dict[str, tuple[int, ...]]
    main: int
    chunk: int
    questions: int
    peak: tuple[int, ...] = ()
    longest: tuple[str, int]
    seeds: tuple[int, ...] = protocol.SEEDS
    keeps: tuple[float, ...] = protocol.KEEPS
    deltas: tuple[float, ...] = protocol.DELTAS

    model: Any
    processor: Any

    @abstractmethod
    def data(self, task: str, shots: int, seed: int) -> tuple[Examples, Examples]:
        """Demonstrations, and held-out questions with their answers."""

    @abstractmethod
    def grid(self, task: str) -> list[Row]:
        """What is compared at equal shares."""

    @abstractmethod
    def bounds(self, task: str, shots: int) -> list[Row]:
        """What is compared under bounds."""

    def about(self) -> dict[str, Any]:
        """What ran: versions, and a digest of the weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + weight.numpy().tobytes())
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {"setting": self.name, "weights": digest.hexdigest(), "threads": torch.get_num_threads(), **versions}

    def ablation(self) -> list[Row]:
        """Ours with one thing changed."""
        return []

    def with_vector(self, task: str) -> bool:
        """Whether a vector is fitted on the task, too."""
        return True

    def template(self, task: str) -> str | None:
        """How a task's demonstrations are written."""
        return None

    def many(self, task: str) -> int:
        """The number of a task's demonstrations at which everything is compared."""
        return self.main

    def quicken(self) -> None:
        """One small context and few questions, to see that everything runs; what comes out means nothing."""
        task = next(iter(self.shots))
        few = 8
        self.shots, self.main, self.questions, self.seeds = {task: (few,)}, few, 12, (0,)
        self.keeps, self.deltas = (0.2,), (protocol.DELTA,)
        self.chunk, self.peak, self.longest = 4, (4, 8) if self.peak else (), (task, few)


class Pictures(Setting):
    """(A) tiny-vlm with weights that were trained with long contexts (tiny_vlm/long.py)."""

    name = "A"
    main, chunk, questions = 64, 8, 200
    peak, longest = (8, 32, 128), ("colour", 128)

    def __init__(self, weights: str | Path | None = None) -> None:
        every = (16, 32, 64, 128)
        self.shots = {"colour": every, "count": every, "if-animal": every, "if-food": every[:3]}
        self.model, self.processor = models.load_vlm(weights)

    def data(self, task: str, shots: int, seed: int) -> tuple[Examples, Examples]:
        return models.pictures(task, shots, self.questions, seed)

    def grid(self, task: str) -> list[Row]:
        return protocol.shares(self.keeps, True)

    def bounds(self, task: str, shots: int) -> list[Row]:
        return protocol.bounded(self.deltas)

    def ablation(self) -> list[Row]:
        return protocol.ablation()


class Words(Setting):
    """(B) SmolLM2-135M. Layers are pruned five at a time: a search over 30 of them takes minutes.

    For the same reason all bounds are tried on one task, the bound from end to end and the vector on that task alone,
    and shares are 0.2 and 0.5.
    """

    name = "B"
    main, chunk, questions = 24, 12, 70
    longest = ("antonyms", 24)
    keeps = (0.2, 0.5)
    grouped = 5

    def __init__(self, weights: str | Path | None = None) -> None:
        self.shots = {"antonyms": (24,), "past-tense": (24,), "capitals": (24,), "passkey": (8,)}
        self.model, self.processor = models.load_words(weights)

    def data(self, task: str, shots: int, seed: int) -> tuple[Examples, Examples]:
        if task == "passkey":
            return passkeys(shots, seed)
        questions = min(self.questions, 67) if task == "capitals" else self.questions
        return models.words(task, shots, questions, seed)

    def grid(self, task: str) -> list[Row]:
        return protocol.shares(self.keeps, False)

    def bounds(self, task: str, shots: int) -> list[Row]:
        rows = protocol.bounded(self.deltas, group=self.grouped)
        middle = [row for row in rows if row.value == protocol.DELTA]
        parts = [row for row in rows if row.family != protocol.WHOLE]
        return list(dict.fromkeys(parts + middle)) if task == "antonyms" else [row for row in middle if row in parts]

    def with_vector(self, task: str) -> bool:
        return task == "antonyms"

    def template(self, task: str) -> str | None:
        return "{question} {answer}.\n" if task == "passkey" else models.TEMPLATE

    def many(self, task: str) -> int:
        return self.shots[task][-1]


def passkeys(codes: int, seed: int) -> tuple[Examples, Examples]:
    """Codes, each after a sentence that says nothing, as demonstrations; and each code's question without it."""
    rng = random.Random(f"passkey {seed}")
    names = rng.sample(models.NAMES, codes)
    asked = [steer.Example(f"The code of {name} is", str(rng.randrange(1000, 10000))) for name in names]
    return [_after_filler(one, rng) for one in asked], asked


def _after_filler(one: steer.Example, rng: random.Random) -> steer.Example:
    fillers: Sequence[str] = models.FILLER
    return steer.Example(f"{rng.choice(fillers)} {one.question}", one.answer)
