"""What the model says and thinks after demonstrations: computed once, kept, and given to the student's losses."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .._content import prompts_digest
from .._inspecting import inspect
from .._teacher_forcing import inputs_of, keep_logits
from ..errors import FileFormatError, SteerError
from ..files import write_whole
from ..fitting import track
from ..prompts import Batch, Prompt, encode
from ..recording import record
from ..sites import Site
from .align import common_suffix, last_real, real_tokens, written_tokens


@dataclass(frozen=True)
class Seen:
    """What the teacher made of one example.

    Attributes:
        logits: (A, V), the scores from which each token of the answer is written; None if not asked for.
        states: (L, n, D), what passes the site at the last n tokens of query and answer, which are those that the
            student reads too; None if not asked for.
        rows: n.
    """

    logits: torch.Tensor | None
    states: torch.Tensor | None
    rows: int


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

    def __post_init__(self) -> None:
        self._memory: dict[int, Seen] = {}
        self._parts = [
            range(start, min(start + self.batch_size, len(self.queries)))
            for start in range(0, len(self.queries), self.batch_size)
        ]

    def prepare(self) -> None:
        """Compute what is not there yet.

        Raises:
            SteerError: not enough room on disk.
        """
        state = PartialState()
        if self.folder is not None:
            self.folder = self.folder / self._digest()[:16]
        missing = [part for part in self._parts if self.folder is None or not self._path(part).exists()]
        if missing:
            self._announce(len(missing) / len(self._parts))
        # On disk the processes share the work; in memory each needs its own.
        mine = missing[state.process_index :: state.num_processes] if self.folder is not None else missing
        for part in track(mine, f"{self.label}: teacher", progress=self.progress and state.is_main_process):
            self._keep(part, list(self._look(part)))
        state.wait_for_everyone()

    def of(self, index: int) -> Seen:
        """The targets of one example.

        Raises:
            FileFormatError: its file is damaged.
        """
        if self.folder is None:
            return self._memory[index]
        path = self._path(self._parts[index // self.batch_size])
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                found = {
                    kind: file.get_tensor(f"{index}.{kind}")
                    for kind in ("logits", "states")
                    if f"{index}.{kind}" in names
                }
                rows = int(file.get_tensor(f"{index}.rows"))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise FileFormatError(f"{path} is damaged: {error}; delete it to have it made again") from error
        return Seen(found.get("logits"), found.get("states"), rows)

    def _look(self, part: range) -> Iterator[Seen]:
        student, counts = self._aligned(part)
        batch = encode(self.model, self.processor, [self.contexts[i] for i in part], template=self.template)
        inputs, length = inputs_of(self.model, batch)
        answers = student.answers
        if answers is None or batch.answers is None or not torch.equal(answers, batch.answers):
            raise SteerError(
                f"{self.label}: answers are tokenised in another way after demonstrations than after the bare query; "
                "use a template in which they follow the same words"
            )
        states, logits = self._forward(inputs, length, answers.shape[1])
        rows, columns = last_real(written_tokens(inputs)[1], counts)
        for b in range(len(part)):
            own = columns[rows == b]
            offset = 0 if states is None else states[0].shape[1] - written_tokens(inputs)[0].shape[1]
            kept = None if states is None else torch.stack([h[b, own + offset].cpu() for h in states])
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

    def _aligned(self, part: range) -> tuple[Batch, list[int]]:
        """The student's batch, and for each row how many of its last tokens are the teacher's last tokens too."""
        student = encode(self.model, self.processor, [self.queries[i] for i in part], template=self.template)
        told = encode(self.model, self.processor, [self.contexts[i] for i in part], template=self.template)
        pairs = zip(*(real_tokens(inputs_of(self.model, one)[0]) for one in (student, told)), strict=True)
        counts = [common_suffix(*pair) for pair in pairs]
        if self.answer_only and student.answers is not None:
            written = (student.answers >= 0).sum(1).tolist()
            counts = [min(pair) for pair in zip(counts, written, strict=True)]
        return student, counts

    def _announce(self, share: float) -> None:
        """Say how much will be kept, by the first batch's sizes; refuse what the disk has no room for."""
        student, counts = self._aligned(self._parts[0])
        tower = inspect(self.model).tower()
        item = self.model.dtype.itemsize
        each = 0.0
        if self.site is not None:
            each += sum(counts) / len(counts) * tower.width * len(tower.layers) * item
        if self.want_logits and student.answers is not None:
            each += student.answers.shape[1] * self.model.config.get_text_config(decoder=True).vocab_size * item
        total = each * len(self.queries) * share
        where = "memory" if self.folder is None else str(self.folder)
        if self.progress and PartialState().is_main_process:
            size = f"about {total / 2**20:.1f} MiB of teacher states for {len(self.queries)} examples"
            Console(stderr=True, soft_wrap=True).print(
                f"{self.label}: {size} in {where}", highlight=False, markup=False
            )
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if total > free:
                raise SteerError(
                    f"{self.label}: the teacher's states need about {total / 2**30:.1f} GiB in {self.folder}, which has "
                    f"{free / 2**30:.1f}; align fewer tokens (rows='answer'), or give a folder on another disk"
                )

    def _keep(self, part: range, found: Sequence[Seen]) -> None:
        if self.folder is None:
            self._memory.update(zip(part, found, strict=True))
            return
        tensors = {f"{i}.rows": torch.tensor(one.rows) for i, one in zip(part, found, strict=True)}
        for i, one in zip(part, found, strict=True):
            kinds = {"logits": one.logits, "states": one.states}
            tensors |= {f"{i}.{kind}": value.contiguous() for kind, value in kinds.items() if value is not None}
        write_whole(self._path(part), save(tensors))

    def _path(self, part: range) -> Path:
        assert self.folder is not None
        return self.folder / f"{part.start:06d}-{part.stop:06d}.safetensors"

    def _digest(self) -> str:
        """What the targets depend on: the model and its weights, every prompt, and what is kept."""
        weights = [
            f"{name} {float(one.sum(dtype=torch.float64)):.17g}"
            for name, one in self.model.named_parameters()
            if one.device.type != "meta" and one.is_floating_point()
        ]
        facts = {
            "fingerprint": inspect(self.model).fingerprint(),
            "dtype": str(self.model.dtype),
            "weights": hashlib.sha256("\n".join(weights).encode()).hexdigest(),
            "site": self.site and [self.site.name, str(self.site.layers)],
            "logits": self.want_logits,
            "answer_only": self.answer_only,
            "template": self.template,
            "batch_size": self.batch_size,
            "prompts": prompts_digest([*self.queries, *self.contexts]),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
