"""Sparse attention vectors (Mitra, Huang, Chai, Lin, Arbelle, Feris, Karlinsky, Darrell, Ramanan and Herzig, 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

import steer
from steer import fitting, prompts, sites
from steer.fitting import fitted

from ._nearest import class_means, cosines, head_accuracy
from ._packed import as_bytes, from_bytes


@dataclass
class SAVs(steer.Method):
    """Classification by what a few heads hold at the prompt's end: the model is read, never changed.

    Fit, with a[l,h] (d_v,) what enters the output projection at the last token of a query without demonstrations:

    1. For each head and class c, mu_c = mean of a over the class's examples. Classes are the examples' answers.
    2. A head says argmax_c cos(a, mu_c). Its accuracy is taken on the examples themselves.
    3. The `heads` heads of highest accuracy, of equals the first in the model.

    Use: each kept head votes for one class, and the class with most votes wins; of classes with as many votes, the one
    with the highest sum of cosines over the kept heads.

    Source: https://arxiv.org/abs/2412.00142 and the authors' `utils.py`, which leave ties open and use about 20
    examples a class.

    Attributes:
        heads: how many vote, at most.
        leave_one_out: in 2., an example is compared with its class's mean without itself; the authors leave it in,
            which flatters heads where a class has few examples.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
    """

    name: ClassVar[str] = "savs"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.00142"
    summary: ClassVar[str] = "Classifies by the nearest class mean in the best few heads; changes nothing."

    heads: int = 20
    leave_one_out: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise steer.errors.InterventionError(f"savs needs at least 1 head, got {self.heads}")

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        seed: int = 0,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Find the heads; one forward for each example.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 2, with answers; equal answers make a class.
            seed: kept with the result; nothing here is random.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "labels", the C classes in alphabetical order as JSON in uint8; "heads", layer and
            head of those that vote, best first, (k, 2); "means.L" (k_L, C, d_v) of the voting heads of layer L, in the
            order of "heads"; "accuracy" of every head, (L, H), zero where a layer has no such head.

        Raises:
            SteerError: too few examples, no answers, one class alone, a class of one with `leave_one_out`, no
                processor, or a model that does not write text.
        """
        fitting.check(model, processor, examples, at_least=2, method=self.name)
        labels = sorted({one.answer for one in examples})
        classes = torch.tensor([labels.index(one.answer) for one in examples])
        self._check_classes(labels, classes.bincount())
        asked = [prompts.Prompt(one) for one in examples]
        batches = prompts.batches(model, processor, asked, template=self.template, batch_size=batch_size)
        bar = fitting.track(batches, "savs: reading heads", progress=progress)
        read = {key.layer: rows for key, rows in fitting.states(model, bar, sites.head_out()).items()}
        found = {layer: head_accuracy(rows, classes, leave_one_out=self.leave_one_out) for layer, rows in read.items()}
        accuracy = torch.zeros(max(read) + 1, max(map(len, found.values())))
        for layer, right in found.items():
            accuracy[layer, : len(right)] = right
        places = [(layer, head) for layer, right in found.items() for head in range(len(right))]
        best = sorted(places, key=lambda place: -float(accuracy[place]))[: self.heads]
        self.tensors = {
            "labels": as_bytes(labels),
            "heads": torch.tensor(best).float(),
            **{f"means.{k}": class_means(read[k], classes)[heads] for k, heads in _by_layer(best).items()},
            "accuracy": accuracy,
        }
        self.record_provenance(steer.inspect(model), seed, examples)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """None: the model is only read. Use `answer` or `classify`."""
        fitted(self, "heads")
        return []

    def classify(
        self,
        model: torch.nn.Module,
        processor: Any,
        queries: Sequence[steer.Example],
        *,
        template: str | None = None,
        batch_size: int = 16,
    ) -> tuple[list[str], torch.Tensor]:
        """The class of each query, one forward each.

        Args:
            model: of the shape that the method was fitted on.
            processor: its processor or tokenizer.
            queries: what is asked; their answers are not looked at.
            template: as in `answer`.
            batch_size: prompts in one forward.

        Returns:
            N labels, and the votes for each of the C classes in alphabetical order, int64 (N, C).

        Raises:
            SteerError: the method was not fitted.
            FingerprintError: it was fitted on another model.
        """
        labels = [str(label) for label in from_bytes(fitted(self, "labels"))]
        self.check_fits(steer.inspect(model))
        if not queries:
            return [], torch.zeros(0, len(labels), dtype=torch.int64)
        by_layer = _by_layer([(layer, head) for layer, head in fitted(self, "heads").long().tolist()])
        bare = [prompts.Prompt(steer.Example(one.question, "", one.images)) for one in queries]
        chosen = template if template is not None else self.template
        batches = prompts.batches(model, processor, bare, template=chosen, batch_size=batch_size)
        read = fitting.states(model, batches, sites.head_out(sorted(by_layer)))
        alike = torch.cat(
            [
                cosines(rows[:, by_layer[key.layer]], fitted(self, f"means.{key.layer}").to(rows))
                for key, rows in read.items()
            ],
            dim=1,
        )
        votes = torch.nn.functional.one_hot(alike.argmax(-1), len(labels)).sum(1)
        # A sum of cosines only decides between equals: whole votes are put out of its reach.
        ranked = torch.where(votes == votes.amax(-1, keepdim=True), alike.sum(1), float("-inf"))
        return [labels[i] for i in ranked.argmax(-1).tolist()], votes

    def answer(
        self,
        model: torch.nn.Module,
        processor: Any,
        queries: Sequence[steer.Example],
        *,
        template: str | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 8,
    ) -> list[str]:
        """The class of each query, as `classify`; nothing is written, so `max_new_tokens` means nothing here."""
        return self.classify(model, processor, queries, template=template, batch_size=batch_size)[0]

    def _check_classes(self, labels: Sequence[str], counts: torch.Tensor) -> None:
        if len(labels) < 2:
            raise steer.SteerError(f"savs tells classes apart, but every example's answer is {labels[0]!r}")
        least = int(counts.argmin())
        if self.leave_one_out and counts[least] < 2:
            raise steer.SteerError(
                f"leave_one_out needs at least 2 examples of every class; {labels[least]!r} has {int(counts[least])}"
            )


def _by_layer(places: Sequence[tuple[int, int]]) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = {}
    for layer, head in places:
        found.setdefault(layer, []).append(head)
    return found
