"""The base of methods that are fitted by gradient, alone from answers or from what demonstrations do to the model."""

from __future__ import annotations

import dataclasses
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch

from .. import fitting, sites
from .._inspecting import inspect
from .._processes import in_step, processes_of, split_by_tensors
from ..demonstrations import Demonstrations
from ..errors import SteerError, unknown_name
from ..examples import Example
from ..method import Method
from ..model_map import ModelMap
from ..prompts import Prompt, batches
from . import loop, losses
from ._frozen import frozen
from ._identity import identity_of
from .options import Options
from .student import StateLoss, Student
from .teacher import Teacher

ANSWER_LOSSES = ("ce", "kl_answer")


@dataclass(kw_only=True)
class Learned(Method):
    """A method whose tensors are fitted by gradient through a session, the model's weights frozen.

    A subclass says where the tensors start (`initial`) and what they do (`interventions`, which reads `self.tensors`:
    while fitting they are fp32 leaves that require gradients). The loss is the weighted sum of `losses`; all of them
    but `ce` compare with a teacher, the same model reading the same query after demonstrations.

    Attributes:
        losses: weight of each term: `ce` and `kl_answer`, means over the answer's tokens; `mse`, `cosine` and what else
            `state_losses` has, means over layers and aligned tokens of the hidden states at `align`.
        shots: demonstrations in the teacher's context.
        align: where hidden states are compared.
        rows: "all" tokens that the two read alike, or only those that the "answer" is written from.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
    """

    losses: dict[str, float] = field(default_factory=lambda: {"ce": 1.0})
    shots: int = 8
    align: Literal["resid_out", "mlp_out", "attn_out"] = "resid_out"
    rows: Literal["all", "answer"] = "all"
    template: str | None = None

    fit_options: ClassVar[type | None] = Options

    @abstractmethod
    def initial(self, model_map: ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Where the tensors start, fp32 on the CPU: there the method changes nothing, or its docstring says what."""

    def learning_rates(self) -> dict[str, float]:
        """By tensor, what the learning rate is multiplied by where that is not 1."""
        return {}

    def frozen_tensors(self) -> frozenset[str]:
        """Names of those tensors of `initial` that are not fitted."""
        return frozenset()

    def state_losses(self) -> dict[str, StateLoss]:
        """Losses on hidden states by name, besides those that answers have."""
        return {"mse": losses.mse, "cosine": losses.cosine, "lorentz": losses.lorentz}

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[Example],
        *,
        seed: int = 0,
        dev: Sequence[Example] | None = None,
        demonstrations: Demonstrations | None = None,
        folder: str | os.PathLike[str] | None = None,
        teacher_folder: str | os.PathLike[str] | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Self:
        """Fit `tensors`.

        Started with `accelerate launch --multi_gpu` (which is for CPUs too), the processes share every batch, and the
        result is that of one, to rounding. The tensors are each process's own; the model is too, or its weights are
        spread over them (`shard`).

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 2, with answers; with a teacher more than one, so that others can demonstrate.
            seed: of the start, the demonstrations, the order of the examples, and what is held out.
            dev: examples by which the best tensors are kept and the fit stops early (mean negative log-probability of
                the answer); None holds a quarter of `examples` out; an empty list keeps the last tensors.
            demonstrations: what the teacher is shown; None for `shots` others of `examples`, drawn for each query.
            folder: where the checkpoint and the teacher's states are kept. The same call again goes on where the first
                was cut off, bit for bit.
            teacher_folder: where the teacher's states are kept, if not in `folder`. Fits may share it: what is found
                there is used only where model, weights and prompts are the same.
            progress: show bars on standard error.
            options: fields of `steer.training.Options`.

        Returns:
            Itself. `provenance["training"]` has options, steps, seconds, and the losses at every look at `dev`.

        Raises:
            SteerError: too few examples, no answers, no processor, a model that does not write text; or the folder
                holds another fit.
            UnknownNameError: no such option or loss.
            NotFiniteError: a loss became NaN; the message has the step, the examples and the last good checkpoint.
        """
        # First of all: who else is at work is settled by the first who asks.
        processes_of(model)
        if split_by_tensors(model):
            raise SteerError(
                f"method {self.name!r} cannot be fitted on a model that is split by tensors (tp_plan): its processes "
                "cannot share the examples; spread its weights instead: steer.training.shard(model)"
            )
        chosen, kept = Options.of(options), Path(folder) if folder is not None else None
        targets = Path(teacher_folder) if teacher_folder is not None else kept and kept / "teacher"
        self._check_losses()
        fitting.check(model, processor, examples, at_least=2, method=self.name)
        pool, held = fitting.hold_out(examples, seed=seed) if dev is None else (list(examples), list(dev))
        if held:
            fitting.check(model, processor, held, at_least=1, method=self.name)
        model_map = inspect(model)
        queries = [Prompt(one) for one in pool]
        told = demonstrations or Demonstrations(tuple(pool), self.shots, seed=seed)
        with frozen(model, chosen.gradient_checkpointing):
            teacher = self._teacher(model, processor, queries, told, targets, chosen, progress)
            before = self.tensors, self.provenance
            try:
                self.provenance = {}
                learned = self._leaves(model, model_map, seed)
                job = loop.Job(
                    label=self.name,
                    learned={name: one for name, one in learned.items() if one.requires_grad},
                    size=len(queries),
                    open_batch=self._student(model, processor, queries, teacher).open_batch,
                    weights=self.losses,
                    dev_loss=(lambda: self._dev_loss(model, processor, held, chosen.batch_size)) if held else None,
                    options=chosen,
                    seed=seed,
                    folder=kept,
                    identity=identity_of(self, model, model_map, queries, held, told, seed, chosen),
                    rates=self.learning_rates(),
                    progress=progress,
                )
                best, went = loop.run(job)
            except BaseException:
                self.tensors, self.provenance = before
                raise
        self.tensors = {name: best.get(name, value.detach().cpu()) for name, value in learned.items()}
        self.record_provenance(model_map, seed, pool)
        self.provenance["training"] = {
            **dataclasses.asdict(chosen),
            "steps": went.step,
            "seconds": round(went.seconds, 3),
            "dev_examples": len(held),
            "best_dev": went.best,
            "history": went.history,
        }
        return self

    def number_of_parameters(self) -> int:
        """How many numbers were fitted."""
        return sum(value.numel() for value in self.tensors.values())

    def _check_losses(self) -> None:
        known = (*ANSWER_LOSSES, *self.state_losses())
        for name in self.losses:
            if name not in known:
                raise unknown_name("loss", name, known)
        if not self.losses:
            raise SteerError(f"method {self.name!r} needs at least one loss; there are {', '.join(known)}")

    def _leaves(self, model: Any, model_map: ModelMap, seed: int) -> dict[str, torch.Tensor]:
        """Put the starting tensors in place, on the model's device, asking for gradients."""
        start = self.initial(model_map, torch.Generator().manual_seed(seed))
        frozen_names = self.frozen_tensors()
        self.tensors = {
            name: value.to(model.device, torch.float32, copy=True).requires_grad_(name not in frozen_names)
            for name, value in start.items()
        }
        return self.tensors

    def _teacher(
        self,
        model: Any,
        processor: Any,
        queries: Sequence[Prompt],
        told: Demonstrations,
        folder: Path | None,
        options: Options,
        progress: bool,
    ) -> Teacher | None:
        if set(self.losses) <= {"ce"}:
            return None
        contexts = told.for_queries([one.query for one in queries], model, processor, template=self.template)
        if told.shots and not any(one.shots for one in contexts):
            raise SteerError(
                f"method {self.name!r} compares with a model that was shown demonstrations, but none of the "
                f"{len(queries)} examples to fit on has another to be shown; give more examples, or `demonstrations`"
            )
        teacher = Teacher(
            model,
            processor,
            self.template,
            queries,
            contexts,
            site=self._site() if set(self.losses) & set(self.state_losses()) else None,
            want_logits="kl_answer" in self.losses,
            answer_only=self.rows == "answer",
            batch_size=options.micro_batch_size or min(options.batch_size, 8),
            folder=folder,
            label=self.name,
            progress=progress,
        )
        teacher.prepare()
        return teacher

    def _student(self, model: Any, processor: Any, queries: Sequence[Prompt], teacher: Teacher | None) -> Student:
        return Student(
            model,
            processor,
            self.template,
            queries,
            items=[self],
            terms=list(self.losses),
            state_losses=self.state_losses(),
            site=self._site(),
            teacher=teacher,
        )

    def _site(self) -> sites.Site:
        return sites.Site(self.align)

    def _dev_loss(self, model: Any, processor: Any, held: Sequence[Example], batch_size: int) -> tuple[float, int]:
        """Sum of the answers' negative log-probabilities over this process's share of `dev`, and its size."""
        state = processes_of(model)
        mine = held[state.process_index :: state.num_processes]
        rounds = in_step(mine, -(-len(held) // state.num_processes), held[0])
        shown = [Prompt(one) for one, _ in rounds]
        made = batches(model, processor, shown, template=self.template, batch_size=batch_size)
        return -float(fitting.score(model, made, self).log_prob[: len(mine)].double().sum()), len(mine)
