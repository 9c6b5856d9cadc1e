"""The training loop: a few tensors beside a frozen model, in one process or several, resumable to the bit."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce

from .._processes import in_step, processes_of
from ..errors import SteerError
from ..fitting import progress_bar
from . import _checkpoint
from ._checkpoint import Progress
from .options import Options

OpenBatch = Callable[[Sequence[int]], AbstractContextManager[Mapping[str, torch.Tensor]]]
"""Takes numbers of examples; inside the block gives each loss term, one number for each example, (B,)."""


Backward = Callable[[Mapping[str, torch.Tensor], int], None]


class NotFiniteError(SteerError):
    """A loss or gradient became NaN or infinite; the message has the step, the examples and the last checkpoint."""


@dataclass
class Job:
    """One fit.

    Attributes:
        label: beside the progress bar, and in errors.
        learned: what is fitted, fp32 leaves that require gradients; changed in place.
        size: how many examples there are.
        open_batch: the loss terms of some examples; the backward pass runs inside its block.
        weights: how much each loss term counts.
        dev_loss: what early stopping looks at, for this process's share of `dev`: (sum, count); None to keep the last.
        options: how the fit is run.
        seed: of the order of the examples.
        folder: where checkpoints go, or None.
        identity: what makes this fit another one than others, as plain data.
        rates: by name, what the learning rate of a tensor is multiplied by.
        before_step: is told the number of the step that comes, from 0, to draw from it what is random there.
        backward: adds the gradients of a batch's losses, (name of a loss -> (B,), weighted) over so many examples; None
            for those of their sum.
        after_backward: may change the gradients when those of the whole batch and of all processes are there; is given
            what adds a tensor up over the processes.
        average: by epoch, from 0, how much the tensors at its end count in the result; None for the last or best ones.
        progress: show a bar.
    """

    label: str
    learned: dict[str, torch.Tensor]
    size: int
    open_batch: OpenBatch
    weights: Mapping[str, float]
    dev_loss: Callable[[], tuple[float, int]] | None
    options: Options
    seed: int = 0
    folder: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    before_step: Callable[[int], None] | None = None
    backward: Backward | None = None
    after_backward: Callable[[Callable[[torch.Tensor], torch.Tensor]], None] | None = None
    average: Sequence[float] | None = None
    progress: bool = True


def run(job: Job) -> tuple[dict[str, torch.Tensor], Progress]:
    """Fit.

    Returns:
        The tensors that were best on `dev` (the last ones without `dev`), on the CPU, and how it went.

    Raises:
        NotFiniteError: a loss or gradient was NaN or infinite.
        SteerError: the folder holds another fit, or there is nothing to fit.
    """
    return _Run(job).to_the_end()


class _Run:
    def __init__(self, job: Job) -> None:
        if not job.size or not job.learned:
            raise SteerError(f"{job.label}: there is nothing to fit: {job.size} examples, {len(job.learned)} tensors")
        self.job, self.state = job, processes_of(next(iter(job.learned.values())))
        groups = [{"params": [one], "rate": job.rates.get(name, 1.0)} for name, one in job.learned.items()]
        if job.average is not None and job.dev_loss is not None:
            raise SteerError(f"{job.label}: the mean over epochs and the best on dev cannot both be the result")
        self.optimiser = job.options.optimiser(groups)
        self.steps = job.options.steps(job.size)
        self.an_epoch = math.ceil(job.size / job.options.batch_size)
        if job.average is not None and len(job.average) * self.an_epoch != self.steps:
            raise SteerError(
                f"{job.label}: the result is a mean over {len(job.average)} whole epochs of {self.an_epoch} steps, but "
                f"the fit has {self.steps} steps; give epochs, not max_steps"
            )
        self.look_every = job.options.eval_every or self.an_epoch
        self.keep_every = job.options.checkpoint_every or self.look_every
        self.now, self.best = Progress(), dict[str, torch.Tensor]()
        self.kept_at: int | None = None

    def to_the_end(self) -> tuple[dict[str, torch.Tensor], Progress]:
        self._resume()
        started, before = time.perf_counter(), self.now.seconds
        with progress_bar(self.job.progress and self.state.is_main_process) as bar:
            task = bar.add_task(self.job.label, total=self.steps, completed=self.now.step)
            while self.now.step < self.steps and not self.now.stopped:
                self._step()
                self.now.seconds = before + time.perf_counter() - started
                if self.now.step % self.look_every == 0 or self.now.step == self.steps:
                    self._look()
                if self.now.step % self.keep_every == 0 or self.now.step == self.steps or self.now.stopped:
                    self._keep()
                bar.update(task, completed=self.now.step, description=self._words())
        final = self.best or _copy(self.job.learned)
        return final, self.now

    def _step(self) -> None:
        job, step = self.job, self.now.step
        if job.before_step is not None:
            job.before_step(step)
        batch = batch_of(step, job.size, job.options.batch_size, job.seed)
        mine = batch[self.state.process_index :: self.state.num_processes]
        self.optimiser.zero_grad(set_to_none=False)
        sums, bad = dict.fromkeys(job.weights, 0.0), []
        share = -(-len(batch) // self.state.num_processes)
        micro = job.options.micro_batch_size or share
        parts = [mine[start : start + micro] for start in range(0, len(mine), micro)]
        for part, counts in in_step(parts, -(-share // micro), batch[:1]):
            # The caller may stand in torch.no_grad().
            with torch.enable_grad(), job.open_batch(part) as terms:
                weighted = {name: counts * job.weights[name] * terms[name] for name in job.weights}
                loss = torch.stack(tuple(weighted.values())).sum(0)
                bad += [one for one, finite in zip(part, loss.detach().isfinite().tolist(), strict=True) if not finite]
                if job.backward is not None:
                    job.backward(weighted, len(batch))
                else:
                    (loss.sum() / len(batch)).backward()
            for name in sums:
                sums[name] += counts * float(terms[name].detach().sum()) / len(batch)
        norm = self._gather(sums, bad, batch)
        factor = job.options.lr_factor(step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = job.options.lr * group["rate"] * factor
        if job.options.max_grad_norm and norm > job.options.max_grad_norm:
            for one in job.learned.values():
                assert one.grad is not None
                one.grad.mul_(job.options.max_grad_norm / norm)
        self.optimiser.step()
        self.now.step += 1
        if job.average is not None and self.now.step % self.an_epoch == 0:
            self._average(job.average[self.now.step // self.an_epoch - 1])

    def _average(self, weight: float) -> None:
        """Add the tensors as they are at an epoch's end to the mean that is the result."""
        for name, value in _copy(self.job.learned).items():
            self.best[name] = self.best.get(name, torch.zeros_like(value)) + weight * value

    def _gather(self, sums: dict[str, float], bad: list[int], batch: list[int]) -> float:
        """Add up losses and gradients over the processes; the gradient's length."""
        learned = self.job.learned.values()
        for one in learned:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        numbers = self._total([*sums.values(), len(bad)])
        for name, value in zip(sums, numbers, strict=False):
            self.now.sums[name] = self.now.sums.get(name, 0.0) + value
        if self.state.num_processes > 1:
            for one in learned:
                assert one.grad is not None
                one.grad = self._add_up(one.grad)
        if self.job.after_backward is not None:
            self.job.after_backward(self._add_up)
        squares = [one.grad.double().square().sum().cpu() for one in learned if one.grad is not None]
        norm = float(torch.stack(squares).sum().sqrt())
        if numbers[-1] > 0 or not math.isfinite(norm):
            elsewhere = f"{numbers[-1]:.0f} losses of another process" if numbers[-1] > 0 else "the gradient"
            self._stop(f"the loss of examples {bad}" if bad else elsewhere, f"in the batch of examples {sorted(batch)}")
        return norm

    def _add_up(self, one: torch.Tensor) -> torch.Tensor:
        """A tensor's sum over the processes."""
        return reduce(one, "sum") if self.state.num_processes > 1 else one

    def _total(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes."""
        if self.state.num_processes == 1:
            return list(numbers)
        added: torch.Tensor = reduce(torch.tensor(numbers, dtype=torch.float64, device=self.state.device), "sum")
        return added.tolist()

    def _stop(self, what: str, where: str) -> None:
        path = f"{self.job.folder / _checkpoint.NAME} (step {self.kept_at})" if self.job.folder else ""
        good = path if path and self.kept_at is not None else "none was written"
        raise NotFiniteError(
            f"{self.job.label}: {what} is not finite at step {self.now.step}, {where}; "
            f"the last good checkpoint: {good}. A lower lr or max_grad_norm may help"
        )

    def _look(self) -> None:
        """Note the losses, and whether `dev` got better."""
        since = self.now.step - (self.now.history[-1]["step"] if self.now.history else 0)
        entry: dict[str, Any] = {"step": self.now.step, **{k: v / max(1, since) for k, v in self.now.sums.items()}}
        self.now.sums = {}
        if self.job.dev_loss is not None:
            total, count = self._total(self.job.dev_loss())
            entry["dev"] = total / count
            if not math.isfinite(entry["dev"]):
                self._stop("the loss on dev", f"over {count:.0f} examples")
            if self.now.best is None or entry["dev"] < self.now.best:
                self.now.best, self.now.worse, self.best = entry["dev"], 0, _copy(self.job.learned)
            else:
                self.now.worse += 1
            patience = self.job.options.patience
            self.now.stopped = patience is not None and self.now.worse >= patience
        self.now.history.append(entry)

    def _keep(self) -> None:
        if self.job.folder is None:
            return
        if self.state.is_main_process:
            _checkpoint.write(self.job.folder, self.job.identity, self.now, self.job.learned, self.best, self.optimiser)
        self.state.wait_for_everyone()
        self.kept_at = self.now.step

    def _resume(self) -> None:
        if self.job.folder is None:
            return
        found = _checkpoint.read(self.job.folder, self.job.identity, self.job.learned, self.optimiser)
        if found is not None:
            self.now, self.best = found
            self.kept_at = self.now.step
        self.state.wait_for_everyone()

    def _words(self) -> str:
        last = self.now.history[-1] if self.now.history else {}
        shown = [f"{name} {last[name]:.3g}" for name in (*self.job.weights, "dev") if name in last]
        return f"{self.job.label}  {'  '.join(shown)}".rstrip()


def batch_of(step: int, size: int, batch_size: int, seed: int) -> list[int]:
    """The examples of one step: every epoch has each example once, in an order of its own."""
    epoch, place = divmod(step, math.ceil(size / batch_size))
    order = random.Random(f"{seed} {epoch}").sample(range(size), size)
    return order[place * batch_size : (place + 1) * batch_size]


def _copy(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
