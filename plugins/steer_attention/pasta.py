"""Attention steered to what the user points at: everything else of the prompt counts for less (PASTA)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import ops, positions, sites
from steer.errors import InterventionError, MappingError, unknown_name
from steer.positions import Positions

from ._heads import Heads, as_pairs, chosen

SPANS = ("given", "images")


class _Unknown(Positions):
    """Stands for a span that nobody gave, so that a method loaded without one can be checked against a model."""

    def resolve(self, frame: Any) -> Any:
        raise InterventionError(
            "pasta does not know what to look at: attach method.on(span), with a span of this prompt from "
            'steer.regions.text_span or image_region; or use span="images"'
        )


@dataclass
class Pasta(steer.Method):
    """In chosen heads, attention to all of the prompt but a span is multiplied by alpha, and renormalised.

    Use, for p (B, H, T, S) attention's weights, G the span, and j the keys of the prompt: p'_ij = p_ij / Z_i for j in
    G, and alpha p_ij / Z_i outside, with Z_i so that row i sums to one. It is made before the softmax, as log(alpha) on
    the scores, which is the same; so attention stays fused. Queries are all rows; keys that were written after the
    prompt keep their weights, as in the authors' code. Of several spans the union counts.

    The span belongs to one prompt, or one batch, and is given when the method is attached:

        span = steer.regions.text_span(processor, inputs, "the cat")
        with steer.attach(model, Pasta(heads={3: [0, 5]}).on(span)):
            model.generate(**inputs)

    Source: https://arxiv.org/abs/2311.02262. Which heads to steer differs from model to model; the paper takes those
    whose steering helps on several tasks. In many models "all" breaks more than it helps.

    Attributes:
        heads: "all"; (layer, head) pairs; the heads of each layer, such as {3: [0, 5]}; or a `steer.HeadMap`, whose 10
            top heads are taken. Query heads, counted from 0. Kept as pairs.
        alpha: above 0; 1 changes no bit, below 1 looks at the span, above 1 away from it.
        layers: with "all" heads, of which layers.
        span: "given" to `on`; or "images": all pictures of the prompt, of which then each row of a batch needs one.

    Raises:
        InterventionError: `heads` or `layers` is none of these; both are given; an alpha that is not above 0.
        UnknownNameError: an unknown `span`.
    """

    name: ClassVar[str] = "pasta"
    paper: ClassVar[str] = "https://arxiv.org/abs/2311.02262"
    summary: ClassVar[str] = "Chosen heads look at the span that the user points at."

    heads: Heads = "all"
    alpha: float = 0.01
    layers: tuple[int, ...] | Literal["all"] = "all"
    span: Literal["given", "images"] = "given"

    def __post_init__(self) -> None:
        self.heads = as_pairs(self.heads, self.name)
        if self.span not in SPANS:
            raise unknown_name("span", self.span, SPANS)
        if self.layers != "all":
            if not isinstance(self.layers, tuple | list) or any(type(one) is not int for one in self.layers):
                raise InterventionError(f'{self.name}: layers are "all" or numbers of layers, got {self.layers!r:.60}')
            self.layers = tuple(self.layers)
            if self.heads != "all":
                raise InterventionError(f"{self.name}: heads already says which layers; leave layers={self.layers} out")
        if not (isinstance(self.alpha, int | float) and 0 < self.alpha < math.inf):
            raise InterventionError(f"{self.name}: alpha must be a number above 0, got {self.alpha!r}")
        self._given: Positions | None = None

    def on(self, *spans: Positions) -> Self:
        """The same method pointed at a span of one prompt, or one in each row of a batch.

        Args:
            *spans: from `steer.regions`, or `positions.mask` of bool tensors (B, S) or (S,), padding counted; what is
                true in any of them is highlighted. A row without anything true is left as it is.

        Returns:
            A copy; the span is not saved with it.

        Raises:
            InterventionError: no spans, none of which anything is true, of different shapes, or not masks.
        """
        masks = [one.rows for one in spans if isinstance(one, Positions) and one.rows is not None]
        if not spans or len(masks) < len(spans):
            raise InterventionError(
                f"{self.name}: a span is a mask of the prompt's tokens, such as steer.regions.text_span and "
                f'image_region give, or positions.mask; got {spans!r:.100}. For all pictures use span="images"'
            )
        if len({mask.shape for mask in masks}) > 1:
            shapes = [list(mask.shape) for mask in masks]
            raise InterventionError(f"{self.name}: spans of one prompt have one shape, got {shapes}")
        inside = torch.stack([mask.to(masks[0].device) for mask in masks]).any(0)
        if not inside.any():
            raise InterventionError(f"{self.name}: no token is in the span, of {list(inside.shape)} tokens")
        pointed = dataclasses.replace(self, span="given")
        pointed.tensors, pointed.provenance = dict(self.tensors), dict(self.provenance)
        # A row without a span has nothing outside: the keys that it writes would count for more than its prompt.
        pointed._given = positions.mask(~inside & inside.any(-1, keepdim=True))
        return pointed

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One for each layer that has chosen heads, two with `span="images"`; none where alpha is 1.

        Without a span they can be made and checked, and raise in the first forward.

        Raises:
            MappingError: an encoder of its own reads the prompt.
            UnknownNameError: layers or heads that the model does not have.
        """
        if "text_encoder" in model_map.towers:
            raise MappingError(
                f"{self.name}: {model_map.model_class} reads its prompt in an encoder of its own, and the span is told "
                "in the sequence that is written; a decoder-only model is needed"
            )
        picked = chosen(self.heads, model_map, self.name, "key_bias")
        if self.layers != "all":
            wanted = {one.layer.index for one in model_map.targets(sites.key_bias(self.layers))}
            picked = [one for one in picked if one.layer in wanted]
        return [
            steer.Intervention(sites.key_bias(one.layer, one.heads), ops.KeyBias(value, keys))
            for one in picked
            for value, keys in self._biases()
        ]

    def _biases(self) -> list[tuple[float, Positions]]:
        """What is added to the scores, and where."""
        value = math.log(self.alpha)
        if value == 0:
            return []
        if self.span == "given":
            return [(value, self._given or _Unknown("mask"))]
        # Less for the rest of the prompt is more for pictures and for what is written: a softmax sees differences.
        return [(-value, positions.image()), (-value, positions.generated())]
