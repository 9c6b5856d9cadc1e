"""Task vectors (Hendel, Geva and Globerson, 2023)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

import steer
from steer import fitting, gates, ops, positions, prompts, sites
from steer.fitting import fitted, split


@dataclass
class TaskVector(steer.Method):
    """The residual stream of one layer at the end of a prompt with demonstrations, put there without them.

    Fit: theta_l = mean over contexts of the residual stream (D,) after layer l at the last token of "demonstrations and
    a query", the query being none of them. The layer is the one where theta_l answers held-out queries best.

    Use: h = h + strength (theta - h) at the last token of the prompt, after that layer. Only the first new token is
    written from it.

    Source: https://arxiv.org/abs/2310.15916 and the authors' `core/task_vectors.py`, whose multi-context form this is:
    every example in turn is the query that the others demonstrate.

    Attributes:
        layer: where it acts; None chooses one when fitting.
        shots: demonstrations in a context, at most.
        contexts: how many are averaged; None for as many as there are examples, each being the query once.
        strength: 1 puts theta in the state's place, as the paper does; less moves the state towards it.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
    """

    name: ClassVar[str] = "task_vector"
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.15916"
    summary: ClassVar[str] = "Replaces one hidden state at the prompt's end by what demonstrations put there."
    # Best of four on dev pictures: docs/experiments/demo_settings.py.
    demo: ClassVar[dict[str, Any]] = {"shots": 4}

    layer: int | None = None
    shots: int = 16
    contexts: int | None = None
    strength: float = 1.0
    template: str | None = None

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        seed: int = 0,
        dev: Sequence[steer.Example] | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Extract the vectors and choose the layer: a forward for each context, and for each layer one over `dev`.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 4, with answers.
            seed: of the contexts, and of what is held out.
            dev: examples by which the layer is chosen; None holds a quarter of `examples` out.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "vector" (D,), "layer" (the number, as a float) and "accuracy", for each layer tried
            the share of `dev` answered right.

        Raises:
            SteerError: too few examples, no answers, no processor, or a model that does not write text.
        """
        pool, held = split(model, processor, examples, dev, seed, self.name)
        make = functools.partial(prompts.batches, model, processor, template=self.template, batch_size=batch_size)
        contexts = make(prompts.draw(pool, self.contexts or len(pool), self.shots, seed=seed))
        bar = fitting.track(contexts, "task_vector: reading contexts", progress=progress)
        found = fitting.states(model, bar, sites.resid_out("all" if self.layer is None else self.layer))
        thetas = {key.layer: rows.mean(0) for key, rows in found.items()}
        layer, accuracy = fitting.best(
            model,
            make([prompts.Prompt(one) for one in held]),
            list(thetas),
            lambda layer: self._replace(layer, thetas[layer]),
            description="task_vector: trying layers",
            progress=progress,
        )
        self.tensors = {"vector": thetas[layer], "layer": torch.tensor(float(layer)), "accuracy": accuracy}
        self.record_provenance(steer.inspect(model), seed, examples)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The replacement at the chosen layer."""
        return [self._replace(int(fitted(self, "layer")), fitted(self, "vector"))]

    def _replace(self, layer: int, vector: torch.Tensor) -> steer.Intervention:
        gate = None if self.strength == 1 else gates.Given(torch.tensor([self.strength]))
        return steer.Intervention(sites.resid_out(layer, positions=positions.last_prompt()), ops.Replace(vector), gate)
