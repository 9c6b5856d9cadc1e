"""One forward of the steered model on queries without demonstrations, and its losses, one number for each example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .._teacher_forcing import inputs_of, keep_logits, no_cache, one_product
from ..prompts import IGNORED, Prompt, encode
from ..recording import record
from ..session import attach
from ..sites import Site
from . import losses
from .align import last_real, written_tokens
from .teacher import Seen, Teacher

if TYPE_CHECKING:
    from ..intervention import Intervention
    from ..method import Method

StateLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes a layer's states and the teacher's, both (N, D); gives one number a row, (N,)."""


@dataclass
class Student:
    """The model with what is being fitted attached.

    Attributes:
        model, processor, template: as in `steer.prompts.encode`.
        queries: answered queries without demonstrations.
        items: what is attached.
        terms: names of the losses wanted: `ce`, `kl_answer`, and those in `state_losses`.
        state_losses: losses of hidden states against the teacher's, by name.
        site: where hidden states are read.
        teacher: for every term but `ce`.
    """

    model: Any
    processor: Any
    template: str | None
    queries: Sequence[Prompt]
    items: Sequence[Intervention | Method]
    terms: Sequence[str]
    state_losses: Mapping[str, StateLoss]
    site: Site
    teacher: Teacher | None

    @contextmanager
    def open_batch(self, indices: Sequence[int]) -> Iterator[Mapping[str, torch.Tensor]]:
        """The losses (B,) of some queries; what is attached stays so until the block ends, for the backward pass."""
        batch = encode(self.model, self.processor, [self.queries[i] for i in indices], template=self.template)
        assert batch.answers is not None
        inputs, length = inputs_of(self.model, batch)
        count = batch.answers.shape[1]
        seen = [self.teacher.of(i) for i in indices] if self.teacher is not None else []
        with ExitStack() as stack:
            stack.enter_context(one_product(self.model))
            stack.enter_context(attach(self.model, *self.items, measure="none", prompt_length=length))
            acts = None
            if self._wants_states:
                acts = stack.enter_context(record(self.model, self.site, grad=True, prompt_length=length))
            options = keep_logits(self.model, count) | no_cache(self.model)
            logits = self.model(**inputs, **options).logits[:, -count:]
            found = self._answer_losses(logits, batch.answers.to(logits.device), seen)
            if acts is not None:
                found |= self._state_losses([acts.steps(*key)[0] for key in acts], inputs, seen)
            yield found

    @property
    def _wants_states(self) -> bool:
        return any(name in self.state_losses for name in self.terms)

    def _answer_losses(
        self, logits: torch.Tensor, answers: torch.Tensor, seen: Sequence[Seen]
    ) -> dict[str, torch.Tensor]:
        """Means over each answer's tokens."""
        real = answers != IGNORED
        found = {}
        if "ce" in self.terms:
            found["ce"] = _mean_of_rows(losses.ce(logits, answers.clamp_min(0)), real)
        if "kl_answer" in self.terms:
            taught = logits.detach().clone()
            taught[real] = torch.cat([one.logits for one in seen if one.logits is not None]).to(taught)
            found["kl_answer"] = _mean_of_rows(losses.kl_answer(logits, taught), real)
        return found

    def _state_losses(
        self, states: Sequence[torch.Tensor], inputs: Mapping[str, torch.Tensor], seen: Sequence[Seen]
    ) -> dict[str, torch.Tensor]:
        """Means over layers and each query's aligned tokens."""
        ids, mask = written_tokens(inputs)
        counts = [one.rows for one in seen]
        rows, columns = last_real(mask, counts)
        taught = torch.cat([one.states for one in seen if one.states is not None], dim=1)
        share = 1 / torch.tensor(counts, dtype=torch.float32).clamp_min(1)
        found = {}
        for name, loss in self.state_losses.items():
            if name not in self.terms:
                continue
            total = torch.zeros(len(seen), device=ids.device)
            for h, goal in zip(states, taught, strict=True):
                # A model may put tokens of its own (such as its pictures') in front of those it was given.
                place = columns + (h.shape[1] - ids.shape[1])
                distance = loss(h[rows.to(h.device), place.to(h.device)], goal.to(h.device))
                total = total.index_add(0, rows, distance.to(total))
            found[name] = total * share.to(total) / len(states)
        return found


def _mean_of_rows(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """(B, A) and where they count -> the mean over A, (B,)."""
    return values.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp_min(1)
