"""A static shift of every head's result: what the gated methods must beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

import steer
from steer import ops, sites
from steer.training import Learned

from ._shared import fitted, head_groups


@dataclass
class HeadShift(Learned):
    """One vector for each head of each layer, added to the head's result, the same for every token.

    Use, for o (B, T, H, d_v), the input of the output projection: o_h' = o_h + v_h.

    It is MimIC (https://arxiv.org/abs/2504.08851) with its gate held at 1: the control for every method with a gate.

    Attributes:
        layers: where it acts; by default every layer that has softmax attention.
        heads: (layer, head) pairs to act on, where not on all.
    """

    name: ClassVar[str] = "head_shift"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.08851"
    summary: ClassVar[str] = "Learns a static shift for every attention head."

    layers: tuple[int, ...] | Literal["all"] = "all"
    heads: tuple[tuple[int, int], ...] | Literal["all"] = "all"
    losses: dict[str, float] = field(default_factory=lambda: {"kl_answer": 1.0, "ce": 0.5}, kw_only=True)

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Vectors (L, H, d_v) of zeros; only the chosen heads' (n, d_v) where heads are chosen."""
        if self.heads != "all":
            attention = model_map.tower().layers[self.heads[0][0]].attention
            assert attention is not None
            return {"vector": torch.zeros(len(self.heads), attention.value_dim or 0)}
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
