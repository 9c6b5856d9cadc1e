"""A static shift of every head's result: what the gated methods must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

import steer
from steer import ops, sites
from steer.errors import InterventionError
from steer.fitting import fitted
from steer.training import Learned

from ._shared import head_groups, softmax_attention


@dataclass
class HeadShift(Learned):
    """One vector for each head of each layer, added to the head's result, the same for every token.

    Use, for o (B, T, H, d_v), the input of the output projection: o_h' = o_h + v_h.

    It is MimIC (https://arxiv.org/abs/2504.08851) with its gate held at 1: the control for every method with a gate.

    Attributes:
        layers: where it acts; by default every layer that has softmax attention.
        heads: (layer, head) pairs to act on, where not on all; `layers` then says nothing.

    Raises:
        InterventionError: `heads` is empty, names a head twice, or holds something else than pairs.
    """

    name: ClassVar[str] = "head_shift"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.08851"
    summary: ClassVar[str] = "Learns a static shift for every attention head."

    layers: tuple[int, ...] | Literal["all"] = "all"
    heads: tuple[tuple[int, int], ...] | Literal["all"] = "all"
    losses: dict[str, float] = field(default_factory=lambda: {"kl_answer": 1.0, "ce": 0.5}, kw_only=True)

    def __post_init__(self) -> None:
        if self.heads != "all":
            _check_pairs(self.heads)

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Vectors (L, H, d_v) of zeros; only the chosen heads' (n, d_v) where heads are chosen."""
        if self.heads != "all":
            return {"vector": torch.zeros(len(self.heads), _width(model_map, [layer for layer, _ in self.heads]))}
        return {
            f"vector{one.suffix}": torch.zeros(len(one.layers), one.heads, one.value_dim)
            for one in head_groups(model_map, self.layers)
        }

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One addition for all layers of one shape; one for each head where heads are chosen."""
        if self.heads != "all":
            vectors = fitted(self, "vector")
            return [
                steer.Intervention(sites.head_out(layer, head), ops.Add(vectors[i : i + 1]))
                for i, (layer, head) in enumerate(self.heads)
            ]
        return [
            steer.Intervention(sites.head_out(one.layers), ops.Add(fitted(self, f"vector{one.suffix}")))
            for one in head_groups(model_map, self.layers)
        ]


def _check_pairs(heads: object) -> None:
    how = 'heads must be "all" or (layer, head) pairs, each once, such as ((0, 1), (1, 0))'
    pairs = list(heads) if isinstance(heads, tuple | list) else []
    if not pairs:
        raise InterventionError(f"{how}; got {heads!r}")
    for i, pair in enumerate(pairs):
        numbers = isinstance(pair, tuple | list) and len(pair) == 2 and all(type(one) is int for one in pair)
        if not numbers:
            raise InterventionError(f"{how}; got {pair!r}")
        if pair in pairs[:i]:
            raise InterventionError(f"{how}; {pair!r} is there twice")


def _width(model_map: steer.ModelMap, layers: Sequence[int]) -> int:
    """d_v of layers that must agree in it."""
    widths = {layer: softmax_attention(model_map, layer).value_dim or 0 for layer in layers}
    if len(set(widths.values())) > 1:
        raise InterventionError(
            f"heads of layers with different widths cannot be chosen together; width by layer: {widths}; "
            "attach one method for each width"
        )
    return next(iter(widths.values()))
