"""The two settings of the comparison: pictures with tiny-vlm, words with a pretrained language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import damage
import protocol
import shown
import torch
import words

import steer
from steer import fitting, prompts, zoo


@dataclass(frozen=True)
class Data:
    """Examples of one task under one seed; the three have no picture or word in common."""

    train: list[steer.Example]
    dev: list[steer.Example]
    test: list[steer.Example]


def _one_task(example: steer.Example) -> str:
    return ""


@dataclass(frozen=True)
class SameTask(steer.Demonstrations):
    """Demonstrations of the query's own task, where a pool holds several; `part_of` tells an example's task."""

    part_of: Callable[[steer.Example], str] = field(default=_one_task, repr=False)

    def for_queries(self, queries: Sequence[steer.Example], *rest: Any, **more: Any) -> list[prompts.Prompt]:
        pools: dict[str, list[steer.Example]] = {}
        for one in self.pool:
            pools.setdefault(self.part_of(one), []).append(one)
        own = {
            part: steer.Demonstrations(tuple(pool), self.shots, self.choose, self.order, seed=self.seed)
            for part, pool in pools.items()
        }
        return [own[self.part_of(query)].for_queries([query])[0] for query in queries]


class Setting(ABC):
    """A model and its tasks."""

    name: str
    template: str | None
    tasks: tuple[str, ...]
    single: tuple[str, ...]
    adaptive: tuple[str, ...]  # conditional and mixed tasks
    mixture: str
    steps: int
    looks: int  # at dev, in a fit
    batch_size: int
    ablated: bool  # whether the joint method is fitted without each of its parts
    controlled: tuple[str, ...]  # the tasks with controls
    ordered: tuple[str, ...]  # the tasks on which orders are compared
    searched: dict[str, str]  # on which task's dev examples the choices of a task are made, where not its own

    model: Any
    processor: Any

    @abstractmethod
    def data(self, task: str, seed: int) -> Data:
        """The examples of one task."""

    @abstractmethod
    def rows(self) -> list[protocol.Row]:
        """The methods compared."""

    @abstractmethod
    def part_of(self, example: steer.Example) -> str:
        """Which task of the mixture an example is of."""

    @abstractmethod
    def damage(self, *items: Any) -> dict[str, float]:
        """What is attached does to other things: higher is worse."""

    def quicken(self) -> None:
        """Few steps, to see that everything runs; what comes out means nothing."""
        self.steps, self.tasks = 2, self.tasks[-1:]

    @cached_property
    def heads(self) -> int:
        """Attention heads in all."""
        return sum(layer.attention.num_heads for layer in steer.inspect(self.model).tower().layers)

    def demonstrations(self, task: str, pool: Sequence[steer.Example], shots: int, seed: int, **more: Any) -> SameTask:
        """Demonstrations from a pool, of the query's own task."""
        part_of = self.part_of if task == self.mixture else _one_task
        return SameTask(tuple(pool), shots, seed=seed, part_of=part_of, **more)

    def batches(self, made: Sequence[prompts.Prompt], size: int = 32) -> Sequence[prompts.Batch]:
        """The prompts as the model takes them."""
        return prompts.batches(self.model, self.processor, made, template=self.template, batch_size=size)


class Pictures(Setting):
    """(A) tiny-vlm."""

    name, template = "A", None
    tasks, single, mixture = shown.TASKS, shown.SINGLE, shown.MIXTURE
    adaptive = (*shown.CONDITIONAL, shown.MIXTURE)
    steps, looks, batch_size, ordered = 80, 4, 16, ("position",)
    controlled, ablated = (*adaptive, "position"), True
    searched: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.model, self.processor = zoo.load()

    def data(self, task: str, seed: int) -> Data:
        count = 240 if task == self.mixture else 96
        return Data(
            shown.examples(task, "demo", count, seed),
            shown.examples(task, "dev", 96, seed),
            shown.examples(task, "test", 204, seed),
        )

    def rows(self) -> list[protocol.Row]:
        return protocol.rows(self.heads)

    def part_of(self, example: steer.Example) -> str:
        return shown.part_of(example)

    def damage(self, *items: Any) -> dict[str, float]:
        """Accuracy on plain questions, lost."""
        scores = fitting.score(self.model, self._plain, *items)
        return {"plain": self._plain_alone - scores.accuracy}

    @cached_property
    def _plain(self) -> list[prompts.Batch]:
        asked = [one for name in shown.CUES for one in zoo.examples(f"plain:{name}", "dev", 20, seed=7)]
        return list(self.batches([prompts.Prompt(one) for one in asked], 60))

    @cached_property
    def _plain_alone(self) -> float:
        return fitting.score(self.model, self._plain).accuracy


class Words(Setting):
    """(B) SmolLM2-135M."""

    name = "B"
    tasks, single, mixture = (words.MIXTURE, *words.TASKS), words.TASKS, words.MIXTURE
    adaptive = (words.MIXTURE,)
    steps, looks, batch_size, ordered = 30, 2, 8, (words.TASKS[0],)
    controlled, ablated = (words.MIXTURE,), False
    # Choices are made once, on the mixture: a fit takes half a minute here.
    searched: ClassVar[dict[str, str]] = dict.fromkeys(words.TASKS, words.MIXTURE)

    def __init__(self) -> None:
        import smollm2

        self.template = smollm2.TEMPLATE
        self.model, self.processor = smollm2.load(torch.float32)

    def data(self, task: str, seed: int) -> Data:
        mixed = task == self.mixture
        train, dev, test = (
            words.examples(task, split, seed, per_task) if mixed else words.examples(task, split, seed)[:single]
            for split, per_task, single in (("train", 48, 96), ("dev", 12, 48), ("test", 18, 67))
        )
        return Data(train, dev, test)

    def rows(self) -> list[protocol.Row]:
        return protocol.word_rows()

    def part_of(self, example: steer.Example) -> str:
        return self._tasks[example.question]

    def damage(self, *items: Any) -> dict[str, float]:
        """Perplexity on plain prose, as a ratio to the model's own."""
        return {"perplexity": damage.perplexity(self.model, self.processor, *items) / self._alone}

    @cached_property
    def _tasks(self) -> dict[str, str]:
        return {question: task for task in words.TASKS for question, _ in words.pairs(task)}

    @cached_property
    def _alone(self) -> float:
        return damage.perplexity(self.model, self.processor)
