"""In-context vectors (Liu, Ye, Xing and Zou, 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from einops import rearrange

import steer
from steer import fitting, gates, ops, prompts, sites
from steer.fitting import fitted, split

STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass
class ICV(steer.Method):
    """A direction per layer, from a question to its answer, added after every MLP to every token.

    Fit, with h(.) the embedding and every layer's residual stream at the last token, one after the other as one vector:
    for each example d = h(question and answer) - h(question); direction = first principal component of the d + mean of
    the d, the component of unit length and signed so that its largest score is positive. Each layer's part is v.

    Use, for x (B, T, D) what the MLP adds, in fp32:
    y = strength (1 + relu(cos(x, -v))) v / ||v||;  x' = normalise(x / ||x|| + y) ||x||.

    Equations: https://arxiv.org/abs/2311.06668, as in the authors' `obtain_icv` and `ICVLayer`. There the two texts of
    a pair are a sentence and its rewritten form. Here, for questions with answers, they are the user's turn, and the
    same with its answer written after it, both ending where they end: no token that closes the turn.

    Attributes:
        strength: lambda, at least 0; the paper uses 0.1. None tries 0.05, 0.1, 0.2, 0.3 and 0.5 when fitting, by `dev`.
        layers: where it acts; every layer that has an MLP by default.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
    """

    name: ClassVar[str] = "icv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.06668"
    summary: ClassVar[str] = "Shifts every MLP's output from questions towards their answers."
    # Best of four on dev pictures: docs/experiments/demo_settings.py.
    demo: ClassVar[dict[str, Any]] = {"strength": 0.3}

    strength: float | None = 0.1
    layers: tuple[int, ...] | Literal["all"] = "all"
    template: str | None = None

    def __post_init__(self) -> None:
        if self.strength is not None and self.strength < 0:
            raise steer.errors.InterventionError(f"icv's strength must be at least 0, got {self.strength}")

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
        """Extract the directions: two forwards for each example; with strength None, five more over `dev`.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: with answers; at least 2, or 4 where the strength is chosen.
            seed: kept with the result, and of what is held out; nothing else here is random.
            dev: examples by which the strength is chosen; None holds a quarter of `examples` out. Not read where the
                strength is given.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "directions" (L, D); where the strength was chosen, "strength" and "accuracy", for
            each one tried the share of `dev` answered right.

        Raises:
            SteerError: too few examples, no answers, no processor, or a model that does not write text.
        """
        fitting.check(model, processor, examples, at_least=2, method=self.name)
        pool, held = list(examples), []
        if self.strength is None:
            pool, held = split(model, processor, examples, dev, seed, self.name)

        def read(answered: bool) -> torch.Tensor:
            shown = [prompts.Prompt(one, answered=answered) for one in pool]
            batches = prompts.batches(model, processor, shown, template=self.template, batch_size=batch_size)
            label = "icv: reading " + ("answers" if answered else "questions")
            found = fitting.states(
                model, fitting.track(batches, label, progress=progress), sites.embeddings(), sites.resid_out()
            )
            return torch.stack(list(found.values()), dim=1)

        direction = principal_direction(read(answered=True) - read(answered=False))
        self.tensors = {"directions": direction[1:].float()}
        if self.strength is None:
            shown = [prompts.Prompt(one) for one in held]
            queries = prompts.batches(model, processor, shown, template=self.template, batch_size=batch_size)
            model_map = steer.inspect(model)
            best, accuracy = fitting.best(
                model,
                queries,
                STRENGTHS,
                lambda strength: self._shift(model_map, strength),
                description="icv: trying strengths",
                progress=progress,
            )
            self.tensors |= {"strength": torch.tensor(best), "accuracy": accuracy}
        self.record_provenance(steer.inspect(model), seed, examples)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The shift of every layer, as one intervention."""
        strength = float(fitted(self, "strength")) if self.strength is None else self.strength
        return self._shift(model_map, strength)

    def _shift(self, model_map: steer.ModelMap, strength: float) -> list[steer.Intervention]:
        unit = torch.nn.functional.normalize(fitted(self, "directions"), dim=-1)
        having = [layer.index for layer in model_map.tower().layers if layer.mlp_out or layer.mlp]
        layers = having if self.layers == "all" else list(self.layers)
        op = ops.Add(unit[layers], strength, keep_norm=True, relative=True)
        return [steer.Intervention(sites.mlp_out(layers), op, gates.Cosine())]


def principal_direction(differences: torch.Tensor) -> torch.Tensor:
    """First principal component plus mean of (N, L, D), each example one vector of L * D numbers: (L, D)."""
    flat = rearrange(differences.double(), "n l d -> n (l d)")
    mean = flat.mean(0)
    scores, _, components = torch.linalg.svd(flat - mean, full_matrices=False)
    sign = scores[scores[:, 0].abs().argmax(), 0].sign()
    return rearrange(sign * components[0] + mean, "(l d) -> l d", l=differences.shape[1])
