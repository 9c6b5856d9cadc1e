"""Inference-time intervention (Li, Patel, Viegas, Pfister and Wattenberg, 2023)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import fitting, ops, positions, prompts, sites
from steer._content import question_digest
from steer.errors import InterventionError
from steer.fitting import fitted

from . import _probes
from . import _two_lists as two_lists
from ._heads import Heads, as_pairs, chosen

ALPHAS = (1.0, 3.0, 5.0, 10.0, 15.0)
DIRECTIONS = {"mass_mean": _probes.mass_mean, "probe": _probes.probe_weight}


@dataclass
class ITI(steer.Method):
    """Heads that know whether an answer is right are moved the way that right answers lie.

    Fit, for head h with o_h (d_v,) what enters the output projection at the last token of a question with its answer:

    1. A logistic regression on o_h tells right answers from wrong ones; accuracy on held-out questions, in `folds`
       parts. A question's answers are held out together.
    2. The `count` heads of highest accuracy; of equals the one whose probe is surer of what is right, held out too.
    3. theta_h = mean of o_h over right answers - over wrong ones, of unit length; sigma_h = standard deviation of
       <o_h, theta_h> over all of them.

    Use: o_h = o_h + alpha sigma_h theta_h for the kept heads, at the last token of the prompt and every token after it.

    Source: https://arxiv.org/abs/2306.03341. The paper keeps 48 heads of 1,024 with alpha 15 in LLaMA-7B, chosen by
    dev. Anything that two lists of examples can show takes the place of truth.

    Attributes:
        alpha: strength, in standard deviations; None tries 1, 3, 5, 10 and 15 when fitting, by `dev`.
        count: how many heads are kept.
        heads: heads to move instead of the best ones: "all"; (layer, head) pairs; the heads of each layer, such as
            {3: [0, 5]}; or a `steer.HeadMap`, whose 10 top heads are taken. Kept as pairs.
        direction: "mass_mean", as in 3. and best in the paper, or "probe": the weights of a probe on all examples.
        read: at the last token of the "answer", or of the "prompt", where what is wanted shows in the question.
        folds: parts in which examples are held out; at least 2.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.

    Raises:
        InterventionError: less than 1 head or 2 folds; `heads` is none of these, empty, or names a head twice.
        UnknownNameError: an unknown `direction` or `read`.
    """

    name: ClassVar[str] = "iti"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.03341"
    summary: ClassVar[str] = "Moves the heads that tell right answers from wrong ones towards the right ones."

    alpha: float | None = 5.0
    count: int = 10
    heads: Heads | None = None
    direction: Literal["mass_mean", "probe"] = "mass_mean"
    read: Literal["answer", "prompt"] = "answer"
    folds: int = 5
    template: str | None = None

    def __post_init__(self) -> None:
        if self.heads is not None:
            self.heads = as_pairs(self.heads, self.name)
        if self.count < 1 or self.folds < 2:
            raise InterventionError(
                f"iti needs at least 1 head and 2 folds, got count={self.count}, folds={self.folds}"
            )
        for field, known in (("direction", DIRECTIONS), ("read", ("answer", "prompt"))):
            if getattr(self, field) not in known:
                raise steer.errors.unknown_name(f"{field} of method {self.name!r}", getattr(self, field), known)

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        against: Sequence[steer.Example] | None = None,
        seed: int = 0,
        dev: Sequence[steer.Example] | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Find heads and directions: one forward for each example of both lists; with alpha None, five more over `dev`.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 2, or 4 where alpha is chosen, as the model should answer.
            against: at least 2, as it should not, such as the same questions with wrong answers. None gives each of
                `examples` the answer of another one.
            seed: of the folds, of the answers that are dealt out, and of what is held out for alpha.
            dev: examples by which alpha is chosen; None holds a quarter of `examples` out, with what is in `against` of
                the same questions. Not read where alpha is given.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "heads", layer and head of those kept, best first, (k, 2); "directions.L", theta of
            the kept heads of layer L, (k_L, d_v); "sigma" (k,); "accuracy" of every head's probe, (L, H), zero where
            a layer has no such head; where alpha was chosen, "alpha", and "tried", for each one the share of `dev`
            answered right.

        Raises:
            SteerError: too few examples, no answers, all answers alike, no processor, or a model that does not write
                text.
        """
        answered = self.read == "answer"
        right, wrong, held = two_lists.right_and_wrong(
            model,
            processor,
            examples,
            against,
            dev,
            chooses=self.alpha is None,
            answered=answered,
            seed=seed,
            method=self.name,
        )
        both, positive = [*right, *wrong], torch.tensor([True] * len(right) + [False] * len(wrong))
        make = functools.partial(prompts.batches, model, processor, template=self.template, batch_size=batch_size)
        batches = make(two_lists.shown(both, answered))
        bar = fitting.track(batches, "iti: reading heads", progress=progress)
        states = {key.layer: rows for key, rows in fitting.states(model, bar, sites.head_out()).items()}
        fold = _probes.folds([question_digest(one) for one in both], positive, self.folds, seed)
        probes = {layer: _probes.held_out(rows, positive, fold) for layer, rows in states.items()}
        model_map = steer.inspect(model)
        places = self._best(probes) if self.heads is None else _pairs(self.heads, model_map)
        ways = {layer: DIRECTIONS[self.direction](states[layer], positive) for layer in {layer for layer, _ in places}}
        sigma = {layer: _probes.spread(states[layer], way) for layer, way in ways.items()}
        self.tensors = {
            "heads": torch.tensor(places).float(),
            **{f"directions.{i}": way[[h for layer, h in places if layer == i]].float() for i, way in ways.items()},
            "sigma": torch.tensor([float(sigma[layer][head]) for layer, head in places]),
            "accuracy": _table({layer: accuracy for layer, (accuracy, _) in probes.items()}),
        }
        if self.alpha is None:
            alpha, tried = fitting.best(
                model,
                make([prompts.Prompt(one) for one in held]),
                ALPHAS,
                lambda one: self._shift(model_map, one),
                description="iti: trying strengths",
                progress=progress,
            )
            self.tensors |= {"alpha": torch.tensor(alpha), "tried": tried}
        self.record_provenance(model_map, seed, both)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The shifts, one intervention for each layer that has kept heads."""
        return self._shift(model_map, float(fitted(self, "alpha")) if self.alpha is None else self.alpha)

    def _shift(self, model_map: steer.ModelMap, alpha: float) -> list[steer.Intervention]:
        places = tuple((layer, head) for layer, head in fitted(self, "heads").long().tolist())
        sigma, rows = fitted(self, "sigma"), positions.answer()
        return [
            steer.Intervention(
                sites.head_out(one.layer, one.heads, positions=rows),
                ops.Add(sigma[list(one.places), None] * fitted(self, f"directions.{one.layer}"), alpha),
            )
            for one in chosen(places, model_map, self.name)
        ]

    def _best(self, probes: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[int, int]]:
        ranks = {
            (layer, head): (-float(accuracy[head]), -float(sure[head]))
            for layer, (accuracy, sure) in probes.items()
            for head in range(len(accuracy))
        }
        return sorted(ranks, key=lambda place: ranks[place])[: self.count]


def _pairs(heads: Heads, model_map: steer.ModelMap) -> list[tuple[int, int]]:
    return [(one.layer, head) for one in chosen(heads, model_map, ITI.name) for head in one.heads]


def _table(rows: dict[int, torch.Tensor]) -> torch.Tensor:
    table = torch.zeros(max(rows) + 1, max(map(len, rows.values())))
    for layer, values in rows.items():
        table[layer, : len(values)] = values
    return table
