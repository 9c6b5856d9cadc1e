"""A shift that acts only on prompts that meet a condition (conditional activation steering, Lee et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import conditions, fitting, sites
from steer.fitting import fitted
from steer.latch import check_order, latched
from steer.prompt_state import Pool, prompt_states

from ._wrapper import Wrapper, begins, check_shape, number

_KNOWN = (
    ("pool", ("mean", "last")), ("similarity", conditions.SIMILARITIES), ("direction", conditions.DIRECTIONS)
)  # fmt: skip


@dataclass
class GateThreshold(Wrapper):
    """Shifts in the rows of a batch whose prompt is similar enough to a condition, and in the others none.

    Use, for h (B, D) the residual stream before a layer, over the real tokens of each row's prompt:
    strength of every shift in the row = 1 if s(h, c) > threshold (or <=, as fitted), else 0; c (D,) the condition,
    s(h, c) = cos(h, tanh(c c^T h / c^T c)) as in CAST, or cos(h, c).
    It is decided once, as the prompt is read, and holds for every token of the row, those written later included. The
    shifts must lie at that layer or after it.

    Fit: c from examples where the shift should act and others where not; layer, threshold and side by the F1 of the
    decision on held-out ones of both.

    Source: Lee et al., https://arxiv.org/abs/2409.05907, and the authors' `leash_layer.py`. There the first row of a
    batch decides for all of it. Similarity "cast" tells how much of h lies along c and hardly on which side, so that
    classes on either side of 0 look the same to it; "cosine" tells them apart.

    Attributes:
        layer: before which the condition is read; None chooses one when fitting.
        pool: of the prompt's tokens the `"mean"`, or the `"last"` one.
        similarity: `"cast"` or `"cosine"`.
        direction: `"principal"`: first principal component of both sets about the middle of their means;
            `"mean_difference"`: from one mean to the other.
        above: the threshold, to act above it; None chooses threshold and side when fitting.
    """

    name: ClassVar[str] = "gate_threshold"
    paper: ClassVar[str] = "https://arxiv.org/abs/2409.05907"
    summary: ClassVar[str] = "Lets the shifts of a fitted method act only on prompts that meet a condition."

    layer: int | None = None
    pool: Pool = "mean"
    similarity: Literal["cast", "cosine"] = "cast"
    direction: Literal["principal", "mean_difference"] = "principal"
    above: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, known in _KNOWN:
            if getattr(self, field) not in known:
                raise steer.errors.unknown_name(f"{field} of method {self.name!r}", getattr(self, field), known)

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        otherwise: Sequence[steer.Example] = (),
        seed: int = 0,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Find the condition: one forward for each example, whatever the number of layers.

        Args:
            model: any mapped model.
            processor: its processor or tokenizer.
            examples: at least 2 where the shift should act; answers are not looked at.
            otherwise: at least 2 where it should not.
            seed: of what is held out, a quarter of both.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "direction" (D,), and as one number each "layer", "threshold", "below" (1 to act at
            or below the threshold) and "f1" on what was held out.

        Raises:
            SteerError: too few examples, no processor, or no method to wrap.
            InterventionError: the wrapped method acts before `layer`.
        """
        if min(len(examples), len(otherwise)) < 2:
            raise steer.SteerError(
                f"method {self.name!r} is fitted on at least 2 examples where the shift should act and 2 where it "
                f"should not (otherwise=...), got {len(examples)} and {len(otherwise)}"
            )
        layers = self._candidates(steer.inspect(model))
        wanted = torch.tensor([True] * len(examples) + [False] * len(otherwise))
        batches = self._batches(model, processor, [*examples, *otherwise], batch_size)
        bar = fitting.track(batches, f"{self.name}: reading prompts", progress=progress)
        states = prompt_states(model, bar, [sites.resid_in(layer) for layer in layers], self.pool)
        best, condition = conditions.find(
            states, wanted, seed=seed, similarity=self.similarity, direction=self.direction, above=self.above
        )
        own = {**condition.tensors(), "layer": torch.tensor(float(layers[best]))}
        inner = {name: one for name, one in self.tensors.items() if name.startswith("inner.")}
        self.tensors = {**own, **inner}
        self.record_provenance(steer.inspect(model), seed, [*examples, *otherwise])
        return self

    def _candidates(self, model_map: steer.ModelMap) -> list[int]:
        first = begins(self._shifts(model_map), model_map, self.name)
        if self.layer is not None:
            check_order(self.layer, first, self.name)
            return [self.layer]
        return [layer.index for layer in model_map.tower().layers if layer.index <= first]

    def _shifts(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        return [item for method in self.wrapped() for item in method.interventions(model_map)]

    def _condition(self) -> conditions.Condition:
        cut = conditions.Cut(number(self, "threshold"), 0.0, 0.0)
        return conditions.Condition(fitted(self, "direction").float(), cut, number(self, "below") > 0, self.similarity)

    def decide(
        self, model: torch.nn.Module, processor: Any, queries: Sequence[steer.Example], *, batch_size: int = 16
    ) -> list[bool]:
        """Whether the shift would act on each query.

        Raises:
            SteerError: the method was not fitted.
        """
        decide, layer = self._condition(), int(number(self, "layer"))
        batches = self._batches(model, processor, queries, batch_size)
        (states,) = prompt_states(model, batches, [sites.resid_in(layer)], self.pool)
        return [bool(one) for one in decide(states)[:, 0]]

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The one that decides, and the wrapped methods' with the decision as their gate."""
        shifts, layer = self._shifts(model_map), int(number(self, "layer"))
        check_order(layer, begins(shifts, model_map, self.name), self.name)
        check_shape(self, "direction", (model_map.tower().width,))
        return latched([shifts], self._condition(), layer, self.pool)
