"""Questions shared over processes: the same batches whoever runs them, their answers kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from accelerate import PartialState

from ._kept import A, Kept
from ._processes import of_all, of_the_first, processes_of, split_by_tensors
from .errors import SteerError
from .fitting import progress_bar


@dataclass(frozen=True)
class Asking(Generic[A]):
    """Questions that are asked in one way.

    A batch is the same questions however many processes there are and wherever a run was cut off, so that its answers
    are the same to the bit, padding and all.

    Attributes:
        keys: of the questions.
        batch: answers the questions at these places.
        batch_size: questions in one batch.
        label: beside the progress bar.
        kept: where answers are kept and looked for, or None.
        progress: show a bar on a terminal, from the first process.
    """

    keys: Sequence[str]
    batch: Callable[[Sequence[int]], list[A]]
    batch_size: int
    label: str
    kept: Kept[A] | None = None
    progress: bool = True

    def answers(self, model: Any, *, shared: bool = True) -> list[A]:
        """One answer for each question, in their order.

        Args:
            model: that is asked; where it is split by tensors, every process takes part in every answer.
            shared: share the work with the other processes that were launched. All of them must come here, and each
                gets every answer.

        Raises:
            SteerError: what is kept is of another run, or damaged.
        """
        state = processes_of(model) if shared else None
        known = _of_the_first(self._known, state)
        parts = [range(start, min(start + self.batch_size, len(self.keys))) for start in self._starts()]
        waiting = [part for part in parts if any(self.keys[place] not in known for place in part)]
        if waiting:
            self.batch(waiting[0][:1])  # the first call of all allocates and compiles
        if state is None or state.num_processes == 1:
            found = self._ask(waiting, 0)
        elif split_by_tensors(model):
            found = self._ask(waiting, 0 if state.is_main_process else None)
        else:
            found = of_all(self._share(waiting, state), state)
        everything = known | {answer.key: answer for answer in found}
        return [everything[key] for key in self.keys]

    def _starts(self) -> range:
        return range(0, len(self.keys), self.batch_size)

    def _known(self) -> dict[str, A]:
        return {} if self.kept is None else self.kept.read()

    def _share(self, waiting: Sequence[range], state: PartialState) -> list[A]:
        mine = waiting[state.process_index :: state.num_processes]
        found = self._ask(mine, state.process_index, bar=state.is_main_process)
        # Where weights are spread over processes, every forward of one needs all of them.
        if len(mine) < -(-len(waiting) // state.num_processes):
            self.batch(waiting[0])
        return found

    def _ask(self, parts: Sequence[range], process: int | None, bar: bool = True) -> list[A]:
        """The answers of some batches, kept in the file of a process; None keeps none."""
        found: list[A] = []
        with progress_bar(self.progress and bar and process is not None) as shown:
            task = shown.add_task(self.label, total=sum(map(len, parts)))
            for part in parts:
                answers = self.batch(part)
                if self.kept is not None and process is not None:
                    self.kept.keep(answers, process)
                found += answers
                shown.advance(task, len(answers))
        return found


def _of_the_first(read: Callable[[], dict[str, A]], state: PartialState | None) -> dict[str, A]:
    """What the first process reads: others may see other files, or files that grew. Its error ends all of them."""
    if state is None or state.num_processes == 1:
        return read()
    known: dict[str, A] | None = None
    error: Exception | None = None
    if state.is_main_process:
        try:
            known = read()
        except SteerError as raised:
            error = raised
    known = of_the_first(known, state)
    if error is not None:
        raise error
    if known is None:
        raise SystemExit(1)  # the first one says why
    return known
