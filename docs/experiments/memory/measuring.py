"""One context with its questions: what a memory of it costs in accuracy and divergence from the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from protocol import FULL
from settings import Setting

import steer
from steer.memory import Memory
from steer.memory.method import read
from steer.memory.reading import answer_logits
from steer.memory.words import Words
from steer.prompts import IGNORED, Batch
from steer_kernels import jsd

SIZE = 25  # questions in one forward
Record = dict[str, Any]


class Case:
    """A task's demonstrations of one sampling, and questions about them."""

    def __init__(self, setting: Setting, task: str, shots: int, seed: int) -> None:
        self.setting, self.task, self.shots, self.seed = setting, task, shots, seed
        self.model, self.processor = setting.model, setting.processor
        self.template = setting.template(task)
        self.demonstrations, self.queries = setting.data(task, shots, seed)
        self.words = Words(self.model, self.processor, self.template)

    @cached_property
    def whole(self) -> Memory:
        """The whole context."""
        return read(self.model, self.processor, self.demonstrations, chunk=self.setting.chunk, template=self.template)

    def build(self, method: Any) -> Memory:
        """A method's memory of the demonstrations; not left on the model."""
        memory = method.build(
            self.model,
            self.processor,
            self.demonstrations,
            chunk=self.setting.chunk,
            template=self.template,
            certify=False,
            progress=False,
        )
        memory.unbind()
        return memory

    def measured(self, memory: Memory) -> Record:
        """Accuracy, and divergence on held-out questions."""
        return {**self._right(memory), "held_out": self._divergence(memory, self.held_out, self._teacher)}

    def calibration(self, memory: Memory) -> Record:
        """Divergence on the demonstrations, asked again."""
        return self._divergence(memory, self.again, self._teacher_again)

    def size(self, memory: Memory) -> Record:
        """Bytes in memory, the share of the tokens that is kept, and of the whole context's bytes."""
        share = memory.share()
        return {
            "bytes": memory.nbytes,
            "of_whole": memory.nbytes / self.whole.nbytes,
            "share": sum(share.values()) / len(share),
        }

    def on_disk(self, memory: Memory) -> int:
        """Bytes of the memory's folder."""
        with tempfile.TemporaryDirectory() as folder:
            memory.bind(self.model).save(folder, self.processor)
            memory.unbind()
            return sum(file.stat().st_size for file in Path(folder).iterdir())

    def zero_shot(self) -> Record:
        """The questions alone, as they would be asked with nothing before them."""
        alone = [self.words.questions(part, after=False) for part in _parts(self.queries)]
        right = [self._of(Memory.empty(self.model), batch)[1] for batch in alone]
        return _answered(torch.cat(right))

    def written(self, memory: Memory, *items: Any) -> Record:
        """Accuracy by what the model writes after a memory, with something attached."""
        with steer.attach(self.model, *items, measure="none", strict=False) if items else torch.no_grad():
            written = memory.ask(
                self.model, self.processor, self.queries, template=self.template, batch_size=SIZE, max_new_tokens=8
            )
        return _answered(torch.tensor([_first(a) == q.answer for a, q in zip(written, self.queries, strict=True)]))

    @cached_property
    def held_out(self) -> list[Batch]:
        """The questions, as they go on after the context."""
        return [self.words.questions(part) for part in _parts(self.queries)]

    @cached_property
    def again(self) -> list[Batch]:
        """The demonstrations, asked again."""
        return [self.words.questions(part) for part in _parts(self.demonstrations)]

    @cached_property
    def _teacher(self) -> list[torch.Tensor]:
        return [answer_logits(self.model, self.whole, batch) for batch in self.held_out]

    @cached_property
    def _teacher_again(self) -> list[torch.Tensor]:
        return [answer_logits(self.model, self.whole, batch) for batch in self.again]

    def _of(self, memory: Memory, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores of the answers' tokens (N, V), and which rows of the batch are wholly right, bool (B,)."""
        logits = answer_logits(self.model, memory, batch)
        return logits, _rows_right(logits, batch)

    def _right(self, memory: Memory) -> Record:
        self._last = [self._of(memory, batch) for batch in self.held_out]
        return _answered(torch.cat([right for _, right in self._last]))

    def _divergence(
        self, memory: Memory, batches: Sequence[Batch], teacher: Sequence[torch.Tensor]
    ) -> dict[str, float]:
        held_out = batches is self.held_out
        found, same = [], []
        for place, batch in enumerate(batches):
            logits = self._last[place][0] if held_out else answer_logits(self.model, memory, batch)
            found.append(jsd(teacher[place], logits))
            same.append(teacher[place].argmax(-1) == logits.argmax(-1))
        js = torch.cat(found)
        agreement = float(torch.cat(same).float().mean())
        return {"mean": float(js.mean()), "max": float(js.max()), "agreement": agreement, "tokens": js.numel()}

    def key(self, row: str = FULL) -> str:
        """A record's key."""
        return f"{self.setting.name}/{self.task}/{self.shots}/{row}/{self.seed}"


def _rows_right(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    assert batch.answers is not None
    wanted = batch.answers != IGNORED
    right = torch.ones_like(wanted)
    right[wanted] = logits.argmax(-1) == batch.answers[wanted]
    return right.all(-1)


def _answered(right: torch.Tensor) -> Record:
    bits = right.tolist()
    return {"accuracy": sum(bits) / len(bits), "right": "".join("1" if one else "0" for one in bits)}


def _first(written: str) -> str:
    """The first line, without the full stop of a template."""
    return written.split("\n")[0].strip().removesuffix(".")


def _parts(examples: Sequence[steer.Example]) -> list[Sequence[steer.Example]]:
    return [examples[i : i + SIZE] for i in range(0, len(examples), SIZE)]
