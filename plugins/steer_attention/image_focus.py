"""More, or less, attention to pictures: a constant added to the scores of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import fitting, ops, positions, prompts, sites
from steer.fitting import fitted

from ._heads import Heads, as_pairs, chosen
from ._per_head import by_layer, per_head
from ._rows import check_where, rows

BETAS = (-1.0, 0.0, 0.5, 1.0, 2.0)


@dataclass
class ImageFocus(steer.Method):
    """A constant beta on the scores of image tokens, before the softmax, in chosen heads.

    Use, for s (B, H, T, S) the scaled scores, queries i at the chosen tokens and keys j that hold image tokens:
    s'_ij = s_ij + beta_h. So image tokens get exp(beta) times the odds they had: a head that gave them the share p of
    its attention gives them p e^beta / (1 - p + p e^beta), and the shares among them, and among the others, stay. 0
    changes no bit; beta > 0 looks more at the picture, < 0 looks away.

    Source: the cheap relative of PAI (https://arxiv.org/abs/2407.21771), which adds alpha |s_ij| to the last query's
    scores and so needs them written out. A constant is a rank-one term: attention stays fused, in prefill too.

    Attributes:
        beta: one number, or one for each of `heads` in their order; None tries -1, 0, 0.5, 1 and 2 when fitting.
        heads: "all"; (layer, head) pairs; the heads of each layer, such as {3: [0, 5]}; or a `steer.HeadMap`, whose 10
            top heads are taken (of its share of attention on images, to act where pictures are looked at). Kept as
            pairs.
        where: queries at the tokens from which the "answer" is written, which are the prompt's last and every one after
            it, or at "all" tokens.
        template: how an example is written when fitting, as in `steer.prompts.encode`; None for the chat template.

    Raises:
        InterventionError: `heads` is none of these, empty, or names a head twice; a beta that is no finite number.
        UnknownNameError: an unknown `where`.
    """

    name: ClassVar[str] = "image_focus"
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.21771"
    summary: ClassVar[str] = "Adds a constant to the attention scores of image tokens."

    beta: float | tuple[float, ...] | None = 1.0
    heads: Heads = "all"
    where: Literal["answer", "all"] = "answer"
    template: str | None = None

    def __post_init__(self) -> None:
        self.heads = as_pairs(self.heads, self.name)
        if self.beta is not None:
            self.beta = per_head(self.beta, self.heads, "beta", self.name)
        check_where(self.where, self.name, ("answer", "all"))

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
        """Choose beta: one forward over `dev` for each that is tried. Only where `beta` is None.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: with answers, at least 1; they are what beta is chosen by where `dev` is None, since nothing else
                is learned from them.
            seed: kept with the result; nothing here is random.
            dev: examples to choose by instead.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "beta" (the number), and "accuracy", for each one tried the share answered right.

        Raises:
            SteerError: `beta` is given; no examples, no answers, no processor, or a model that does not write text.
            MappingError: nothing tells where the pictures are.
        """
        if self.beta is not None:
            return super().fit(model, processor, examples, seed=seed)
        asked = examples if dev is None else dev
        fitting.check(model, processor, asked, at_least=1, method=self.name)
        model_map = steer.inspect(model)
        shown = [prompts.Prompt(one) for one in asked]
        beta, accuracy = fitting.best(
            model,
            prompts.batches(model, processor, shown, template=self.template, batch_size=batch_size),
            BETAS,
            lambda one: self._biases(model_map, one),
            description=f"{self.name}: trying strengths",
            progress=progress,
        )
        self.tensors = {"beta": torch.tensor(beta), "accuracy": accuracy}
        self.record_provenance(model_map, seed, asked)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One for each layer that has chosen heads; none where beta is 0."""
        return self._biases(model_map, float(fitted(self, "beta")) if self.beta is None else self.beta)

    def _biases(self, model_map: steer.ModelMap, beta: float | tuple[float, ...]) -> list[steer.Intervention]:
        picked = chosen(self.heads, model_map, self.name, "key_bias")
        where, images = rows(self.where), positions.image()
        return [
            steer.Intervention(sites.key_bias(one.layer, one.heads, positions=where), ops.KeyBias(value, images))
            for one, value in zip(picked, by_layer(beta, picked, "beta", self.name), strict=True)
            # A bias of 0 would change the scores by no number, but the order of sums in a fused kernel.
            if torch.as_tensor(value).any()
        ]
