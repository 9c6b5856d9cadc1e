"""What the model says and thinks after demonstrations: computed once, kept, and given to the student's losses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._content import prompts_digest, weights_digest
from .._inspecting import inspect
from .._processes import in_step, longest, processes_of
from .._teacher_forcing import inputs_of, keep_logits
from ..errors import SteerError
from ..fitting import track
from ..prompts import Batch, Prompt, encode
from ..recording import record
from ..sites import Site
from ._room import announce
from ._targets import Seen, Targets
from .align import common_suffix, last_real, real_tokens, written_tokens

__all__ = ["Seen", "Teacher"]


@dataclass
class Teacher:
    """The model after demonstrations, as targets for the same model without them.

    Attributes:
        model, processor, template: as in `steer.prompts.encode`.
        queries: what the student is shown.
        contexts: what the teacher is shown: the same queries after demonstrations.
        site: where hidden states are read, one for each layer; None for no states.
        want_logits: keep the answers' scores.
        answer_only: keep the hidden states of those tokens only that the answer is written from.
        batch_size: contexts in one forward.
        folder: where targets are kept, so that a second fit finds them; None keeps them in memory.
        label: of the progress bar.
        progress: show a bar, and before it how much will be kept.
    """

    model: Any
    processor: Any
    template: str | None
    queries: Sequence[Prompt]
    contexts: Sequence[Prompt]
    site: Site | None
    want_logits: bool
    answer_only: bool = False
    batch_size: int = 4
    folder: Path | None = None
    label: str = "teacher"
    progress: bool = True

    def prepare(self) -> None:
        """Compute what is not there yet.

        Raises:
            SteerError: not enough room on disk; or query and answer are not the same tokens after demonstrations.
        """
        state = processes_of(self.model)
        folder = self.folder / self._digest()[:16] if self.folder is not None else None
        self._targets = Targets(len(self.queries), self.batch_size, folder)
        missing = self._targets.missing()
        if missing:
            examples = sum(map(len, missing))
            announce(self.label, self._bytes_of_one() * examples, examples, folder, self.progress)
        mine = self._targets.missing(state.process_index, state.num_processes)
        rounds = in_step(mine, longest(len(mine), state), self._targets.parts[0])
        for part, counts in track(rounds, f"{self.label}: teacher", progress=self.progress and state.is_main_process):
            found = list(self._look(part))
            if counts:
                self._targets.keep(part, found)
        state.wait_for_everyone()

    def of(self, index: int) -> Seen:
        """The targets of one example, once they are prepared.

        Raises:
            FileFormatError: its file is damaged.
        """
        return self._targets.of(index)

    def _look(self, part: range) -> Iterator[Seen]:
        student, told, counts = self._aligned(part)
        inputs, length = inputs_of(self.model, told)
        answers = student.answers
        if answers is None or told.answers is None or not torch.equal(answers, told.answers):
            raise SteerError(
                f"{self.label}: answers are tokenised in another way after demonstrations than after the bare query; "
                "use a template in which they follow the same words"
            )
        states, logits = self._forward(inputs, length, answers.shape[1])
        ids, mask = written_tokens(inputs)
        rows, columns = last_real(mask, counts)
        for b in range(len(part)):
            kept = None
            if states is not None:
                # A model may put tokens of its own (such as its pictures') in front of those it was given.
                own = columns[rows == b] + (states[0].shape[1] - ids.shape[1])
                kept = torch.stack([h[b, own.to(h.device)].cpu() for h in states])
            real = int((answers[b] >= 0).sum())
            yield Seen(None if logits is None else logits[b, -answers.shape[1] :][:real].cpu(), kept, counts[b])

    @torch.no_grad()
    def _forward(
        self, inputs: dict[str, torch.Tensor], length: int, rows: int
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        if self.site is None:
            return None, self.model(**inputs, **keep_logits(self.model, rows)).logits
        out = None
        with record(self.model, self.site, stop=not self.want_logits, prompt_length=length) as acts:
            out = self.model(**inputs, **keep_logits(self.model, rows))
        return list(acts.values()), out.logits if out is not None and self.want_logits else None

    def _aligned(self, part: range) -> tuple[Batch, Batch, list[int]]:
        """Student's and teacher's batch, and how many of each row's last tokens are the same in both."""
        student, told = (
            encode(self.model, self.processor, [shown[i] for i in part], template=self.template)
            for shown in (self.queries, self.contexts)
        )
        pairs = zip(*(real_tokens(inputs_of(self.model, one)[0]) for one in (student, told)), strict=True)
        counts = [common_suffix(*pair) for pair in pairs]
        if self.site is not None and not all(counts):
            raise SteerError(
                f"{self.label}: after demonstrations the query of example {part[counts.index(0)]} ends in another "
                "token than alone, so no hidden states can be compared; use a template in which it ends alike"
            )
        if self.answer_only and student.answers is not None:
            written = (student.answers >= 0).sum(1).tolist()
            counts = [min(pair) for pair in zip(counts, written, strict=True)]
        return student, told, counts

    def _bytes_of_one(self) -> float:
        """What one example will need, by the first batch's sizes."""
        student, _, counts = self._aligned(self._targets.parts[0])
        tower = inspect(self.model).tower()
        numbers = 0.0
        if self.site is not None:
            numbers += sum(counts) / len(counts) * tower.width * len(tower.layers)
        if self.want_logits and student.answers is not None:
            numbers += student.answers.shape[1] * self.model.config.get_text_config(decoder=True).vocab_size
        return numbers * float(self.model.dtype.itemsize)

    def _digest(self) -> str:
        """What the targets depend on: the model and its weights, every prompt, and what is kept."""
        facts = {
            "fingerprint": inspect(self.model).fingerprint(),
            "dtype": str(self.model.dtype),
            "weights": weights_digest(self.model),
            "site": self.site and [self.site.name, str(self.site.layers)],
            "logits": self.want_logits,
            "answer_only": self.answer_only,
            "template": self.template,
            "batch_size": self.batch_size,
            "prompts": prompts_digest([*self.queries, *self.contexts]),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
