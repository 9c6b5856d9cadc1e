"""Conditional activation steering (Lee, Padhi, Natesan Ramamurthy and others, 2024)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import conditions, fitting, ops, prompts, sites
from steer.errors import InterventionError
from steer.fitting import fitted
from steer.latch import check_order, latched
from steer.prompt_state import Pool, prompt_states

from . import _two_lists as two_lists
from ._rows import check_where, rows

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
_KNOWN = {
    "pool": ("mean", "last"), "similarity": conditions.SIMILARITIES, "direction": conditions.DIRECTIONS
}  # fmt: skip


@dataclass
class Cast(steer.Method):
    """A behaviour is called up in those rows of a batch whose prompt meets a condition, and in no others.

    Use, for h (B, T, D) the residual stream before a layer:

    1. Condition, before `layer`, once as each prompt is read: s = cos(h, tanh(P h)), P = c c^T / c^T c, for h the mean
       over the prompt's real tokens; it is met if s > threshold (or <=, as fitted).
    2. Where it is met, h = h + strength v_l before every layer l of `layers`, none of them before `layer`, in every
       token of the row, those written later included.

    Fit: v_l from examples that show the behaviour and others that do not, read at their answers' last token: the
    direction, of unit length, times the distance of the two means along it, so that strength 1 in one layer carries one
    mean to the other. c from prompts that meet the condition and others that do not; its layer, threshold and side by
    the F1 of the decision on a held-out quarter of both.

    Source: https://arxiv.org/abs/2409.05907 and the authors' `leash_layer.py`. There row 0 decides for its whole batch,
    the decision lives in the class, so that two models share it, and vectors have unit length. `gate_threshold` is the
    same condition around any other method.

    Attributes:
        strength: what every v_l is multiplied by; None tries 0.5, 1, 2, 4 and 8 when fitting, by `dev`.
        layers: before which v_l is added; None tries each alone when fitting, by `dev`.
        layer: before which the condition is read; None chooses one, up to the first of `layers`, when fitting.
        pool: of the prompt's tokens the `"mean"`, or the `"last"` one.
        similarity: `"cast"`, as in 1., which hardly sees on which side of 0 h lies; `"cosine"`: cos(h, c).
        direction: of v and c, `"principal"`: first principal component of both sets about the middle of their means;
            `"mean_difference"`: from one mean to the other.
        above: a threshold to be above; None chooses threshold and side when fitting.
        where: add v in "all" tokens; in those from which the "answer" is written; or in the "last_prompt" token.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.

    Raises:
        UnknownNameError: an unknown `pool`, `similarity`, `direction` or `where`.
    """

    name: ClassVar[str] = "cast"
    paper: ClassVar[str] = "https://arxiv.org/abs/2409.05907"
    summary: ClassVar[str] = "Adds a behaviour's direction, only for prompts that meet a condition."

    strength: float | None = 1.0
    layers: tuple[int, ...] | None = None
    layer: int | None = None
    pool: Pool = "mean"
    similarity: Literal["cast", "cosine"] = "cast"
    direction: Literal["principal", "mean_difference"] = "principal"
    above: float | None = None
    where: Literal["all", "answer", "last_prompt"] = "all"
    template: str | None = None

    def __post_init__(self) -> None:
        for field, known in _KNOWN.items():
            if getattr(self, field) not in known:
                raise steer.errors.unknown_name(f"{field} of method {self.name!r}", getattr(self, field), known)
        check_where(self.where, self.name)
        if self.layers is not None and not self.layers:
            raise InterventionError("cast: layers is empty; None tries each when fitting")

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        against: Sequence[steer.Example] | None = None,
        when: Sequence[steer.Example] = (),
        otherwise: Sequence[steer.Example] = (),
        seed: int = 0,
        dev: Sequence[steer.Example] | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Find behaviour and condition: a forward for each example of the four lists, and one over `dev` for each try.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 2, answered as the model should where the condition is met; 4 where something is tried.
            against: at least 2, answered as it should not. None gives each of `examples` the answer of another one.
            when: at least 2 whose prompts meet the condition; their answers are not looked at.
            otherwise: at least 2 whose prompts do not.
            seed: of what is held out, and of the answers that are dealt out.
            dev: examples by which layer and strength are tried, without the condition; None holds a quarter of
                `examples` out, with what is in `against` of the same questions. Not read where both are given.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "behaviour" (L, D), one vector for each of "layers" (L,); "direction" (D,), the
            condition c; as one number each "strength", "layer", "threshold", "below" (1 to act at or below the
            threshold) and "f1" on what was held out; and where they were tried "accuracy_layers" and
            "accuracy_strength", for each try the share of `dev` answered right.

        Raises:
            SteerError: too few examples, no answers, no processor, or a model that does not write text.
            UnknownNameError: a layer that does not exist.
            InterventionError: `layers` begin before `layer`.
        """
        self._check_layers(steer.inspect(model))
        right, wrong, held = two_lists.right_and_wrong(
            model,
            processor,
            examples,
            against,
            dev,
            chooses=self.layers is None or self.strength is None,
            answered=True,
            seed=seed,
            method=self.name,
        )
        for which, given in (("when", when), ("otherwise", otherwise)):
            two_lists.check(model, processor, given, at_least=2, answered=False, method=f"{self.name} ({which})")
        make = functools.partial(prompts.batches, model, processor, template=self.template, batch_size=batch_size)

        def track(shown: Sequence[prompts.Prompt], label: str) -> Iterable[prompts.Batch]:
            return fitting.track(make(shown), f"cast: reading {label}", progress=progress)

        act, rest = (
            list(fitting.states(model, track(two_lists.shown(some, True), "answers"), sites.resid_in()).values())
            for some in (right, wrong)
        )
        vectors = torch.stack([self._between(*pair) for pair in zip(act, rest, strict=True)])
        layers, strength, tried = self._try(model, make([prompts.Prompt(one) for one in held]), vectors, progress)
        places = self._places(min(layers))
        asked = track(two_lists.shown([*when, *otherwise], False), "prompts")
        best, condition = conditions.find(
            prompt_states(model, asked, [sites.resid_in(place) for place in places], self.pool),
            torch.tensor([True] * len(when) + [False] * len(otherwise)),
            seed=seed,
            similarity=self.similarity,
            direction=self.direction,
            above=self.above,
        )
        self.tensors = {
            "behaviour": vectors[list(layers)],
            "layers": torch.tensor(layers).float(),
            "strength": torch.tensor(float(strength)),
            "layer": torch.tensor(float(places[best])),
            **condition.tensors(),
            **tried,
        }
        self.record_provenance(steer.inspect(model), seed, [*right, *wrong, *when, *otherwise])
        return self

    def decide(
        self, model: torch.nn.Module, processor: Any, queries: Sequence[steer.Example], *, batch_size: int = 16
    ) -> list[bool]:
        """Whether each query meets the condition.

        Raises:
            SteerError: the method was not fitted.
        """
        condition, site = self._condition(), sites.resid_in(int(fitted(self, "layer")))
        shown = two_lists.shown(queries, False)
        batches = prompts.batches(model, processor, shown, template=self.template, batch_size=batch_size)
        (states,) = prompt_states(model, batches, [site], self.pool)
        return [bool(one) for one in condition(states)[:, 0]]

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The one that decides, and one for all layers that obeys."""
        layers = tuple(fitted(self, "layers").long().tolist())
        layer = int(fitted(self, "layer"))
        check_order(layer, min(layers), self.name)
        shifts = self._shift(layers, fitted(self, "behaviour"), float(fitted(self, "strength")))
        return latched([shifts], self._condition(), layer, self.pool)

    def _condition(self) -> conditions.Condition:
        cut = conditions.Cut(float(fitted(self, "threshold")), 0.0, 0.0)
        return conditions.Condition(fitted(self, "direction"), cut, float(fitted(self, "below")) > 0, self.similarity)

    def _between(self, act: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """From the states (N, D) without a behaviour to those (M, D) with it, along the direction: fp32 (D,)."""
        way = conditions.DIRECTIONS[self.direction](act, rest)
        return (way * (way @ (act.double().mean(0) - rest.double().mean(0)))).float()

    def _check_layers(self, model_map: steer.ModelMap) -> None:
        known = range(len(model_map.tower().layers))
        for one in (*(self.layers or ()), *([] if self.layer is None else [self.layer])):
            if one not in known:
                raise steer.errors.unknown_name("layer", one, known, "in the text tower")
        if self.layers is not None:
            self._places(min(self.layers))

    def _places(self, first: int) -> list[int]:
        """Layers before which the condition may be read."""
        if self.layer is None:
            return list(range(first + 1))
        check_order(self.layer, first, self.name)
        return [self.layer]

    def _try(
        self, model: Any, queries: Sequence[prompts.Batch], vectors: torch.Tensor, progress: bool
    ) -> tuple[tuple[int, ...], float, dict[str, torch.Tensor]]:
        """The layers, the strength, and how well each answered that was tried."""
        best = functools.partial(fitting.best, model, queries, progress=progress)
        tried: dict[str, torch.Tensor] = {}
        layers, strength = self.layers or (), 1.0 if self.strength is None else self.strength
        if self.layers is None:
            # Before the first layer there is nothing yet that a condition could be read from.
            choices = [(one,) for one in range(self.layer or 1, len(vectors))]
            layers, tried["accuracy_layers"] = best(
                choices, lambda one: self._shift(one, vectors[list(one)], strength), description="cast: trying layers"
            )
        if self.strength is None:
            strength, tried["accuracy_strength"] = best(
                STRENGTHS, lambda one: self._shift(layers, vectors[list(layers)], one), description="cast: strengths"
            )
        return layers, strength, tried

    def _shift(self, layers: Sequence[int], vectors: torch.Tensor, strength: float) -> list[steer.Intervention]:
        site = sites.resid_in(list(layers), positions=rows(self.where))
        return [steer.Intervention(site, ops.Add(vectors, strength))]
