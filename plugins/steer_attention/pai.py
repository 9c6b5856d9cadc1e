"""PAI: image tokens' scores raised by a share of their size, and what the words alone would say taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

import torch

import steer
from steer import fitting, ops, positions, prompts, sites
from steer.contrast import without_images
from steer.errors import InterventionError
from steer.fitting import fitted

from ._grid import within
from ._heads import Heads, as_pairs, chosen
from ._per_head import by_layer, per_head
from ._plausible import check_number, check_plausibility, contrasted

ALPHAS = (0.0, 0.1, 0.2, 0.4, 0.8)
GAMMAS = (1.0, 1.1, 1.5)

Alpha = float | tuple[float, ...]


@dataclass
class PAI(steer.Method):
    """More attention to pictures where an answer is written from, and less of what would be said without them.

    Use, for s (B, H, T, S) the scaled scores, queries i at the prompt's last token and every one after it, keys j that
    hold image tokens, in chosen heads: s'_ij = s_ij + alpha_h |s_ij|. With l the logits after that and l' those of the
    same words with every image token hidden: gamma l - (gamma - 1) l', over tokens v with
    p(v) >= plausibility max p, p = softmax(l); the others' logits are -inf. alpha 0 and gamma 1 change no bit. Any
    other gamma reads everything twice.

    Source: https://arxiv.org/abs/2407.21771 and the authors' repository. Theirs raises the last query of each forward,
    so that without a cache a written token's row is raised once and then no more; its second cache does not follow the
    beams; and its mix is not normalised again, so that beams add up scores that are no log-probabilities. Here rows are
    told by their positions, both caches move together, and the mix is made before the softmax.

    Attributes:
        alpha: one number, or one for each of `heads` in their order, 0 for none; None tries 0, 0.1, 0.2, 0.4 and 0.8
            when fitting. |s| is made of what the scores are, so that negative ones are raised too.
        gamma: how much of the difference to the words alone is added, 1 for none, which is also for models that cannot
            hide a token; None tries 1, 1.1 and 1.5 when fitting.
        plausibility: which share of the likeliest token's probability a token needs.
        heads: "all"; (layer, head) pairs; the heads of each layer, such as {3: [0, 5]}; or a `steer.HeadMap`, whose 10
            top heads are taken. Kept as pairs.
        first_layer: with "all" heads, the first layer that is touched; the authors leave two alone.
        template: how an example is written when fitting, as in `steer.prompts.encode`; None for the chat template.

    Raises:
        InterventionError: `heads` is none of these, empty, or names a head twice; a number out of its range.
    """

    name: ClassVar[str] = "pai"
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.21771"
    summary: ClassVar[str] = "Raises image tokens' scores by a share of their size and contrasts with the words alone."

    alpha: Alpha | None = 0.2
    gamma: float | None = 1.1
    plausibility: float = 0.1
    heads: Heads = "all"
    first_layer: int = 2
    template: str | None = None

    def __post_init__(self) -> None:
        self.heads = as_pairs(self.heads, self.name)
        if self.alpha is not None:
            self.alpha = per_head(self.alpha, self.heads, "alpha", self.name)
        check_number(self.gamma, 0, "gamma", self.name, above=True)
        check_plausibility(self.plausibility, self.name)
        if not isinstance(self.first_layer, int) or self.first_layer < 0:
            raise InterventionError(f"{self.name}: first_layer is a layer's number from 0, got {self.first_layer!r}")

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        seed: int = 0,
        dev: Sequence[steer.Example] | None = None,
        budget: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Choose alpha, gamma or both, whichever is None: one or two forwards over `dev` for each setting tried.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: with answers, at least 1; they are what is chosen by where `dev` is None, since nothing else is
                learned from them.
            seed: which settings are tried, if not all are; nothing else here is random.
            dev: examples to choose by instead.
            budget: how many settings are tried, the first of the grid always; None for all (15 where both are open).
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "alpha" or "gamma" or both (numbers), "tried" (N, 2), each setting's alpha and gamma
            (alpha NaN where it is one for each head), and "accuracy" (N,), the share answered right with it. Of equals
            the one that gives right answers more probability is taken.

        Raises:
            SteerError: neither is None; no examples, no answers, no processor, or a model that does not write text.
            MappingError: nothing tells where the pictures are, or the model cannot hide a token and gamma is open.
        """
        if self.alpha is not None and self.gamma is not None:
            return super().fit(model, processor, examples, seed=seed)
        asked = examples if dev is None else dev
        fitting.check(model, processor, asked, at_least=1, method=self.name)
        model_map = steer.inspect(model)
        alphas: Sequence[Alpha] = ALPHAS if self.alpha is None else (self.alpha,)
        gammas = GAMMAS if self.gamma is None else (self.gamma,)
        tried = within(list(product(alphas, gammas)), budget, seed, self.name)
        shown = [prompts.Prompt(one) for one in asked]
        (alpha, gamma), accuracy = fitting.best(
            model,
            prompts.batches(model, processor, shown, template=self.template, batch_size=batch_size),
            tried,
            lambda pair: self._changes(model_map, *pair),
            description=f"{self.name}: trying strengths",
            progress=progress,
        )
        rows = [(float("nan") if isinstance(a, tuple) else a, g) for a, g in tried]
        self.tensors = {"tried": torch.tensor(rows), "accuracy": accuracy}
        if self.alpha is None:
            self.tensors["alpha"] = torch.tensor(alpha)
        if self.gamma is None:
            self.tensors["gamma"] = torch.tensor(gamma)
        self.record_provenance(model_map, seed, asked)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One for each layer that has chosen heads, and one around the model; none where there is nothing to change.

        Raises:
            InterventionError: no layer is left by `first_layer`; another number of alphas than heads.
        """
        alpha = float(fitted(self, "alpha")) if self.alpha is None else self.alpha
        gamma = float(fitted(self, "gamma")) if self.gamma is None else self.gamma
        return self._changes(model_map, alpha, gamma)

    def _changes(self, model_map: steer.ModelMap, alpha: Alpha, gamma: float) -> list[steer.Intervention]:
        made = self._boosts(model_map, alpha)
        if gamma != 1:
            combine = contrasted(gamma - 1, self.plausibility)
            made.append(
                steer.Intervention(sites.call(), ops.Contrast(without_images, combine, images=True, hides=True))
            )
        return made

    def _boosts(self, model_map: steer.ModelMap, alpha: Alpha) -> list[steer.Intervention]:
        if not isinstance(alpha, tuple) and alpha == 0:
            return []
        picked = chosen(self.heads, model_map, self.name, "key_bias")
        first = self.first_layer if self.heads == "all" else 0
        if picked[-1].layer < first:
            raise InterventionError(
                f"{self.name}: first_layer is {first}, and the last layer of {model_map.model_class} with attention to "
                f"steer is {picked[-1].layer}; give a smaller one"
            )
        return [
            steer.Intervention(
                sites.key_bias(one.layer, one.heads, positions=positions.answer()),
                ops.KeyBias(value, positions.image(), relative=True),
            )
            for one, value in zip(picked, by_layer(alpha, picked, "alpha", self.name), strict=True)
            # No share would change the scores by no number, but the order of sums in a fused kernel.
            if one.layer >= first and torch.as_tensor(value).any()
        ]
