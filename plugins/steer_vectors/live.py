"""LIVE: learnable in-context vectors (Peng et al., NeurIPS 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

import steer
from steer import ops, sites
from steer.fitting import fitted
from steer.training import Learned

from ._shared import layers_with


@dataclass
class LIVE(Learned):
    """One vector and one factor for each layer, added to every token, learned to stand for demonstrations.

    Use, for h (B, T, D): y = h + alpha v; with `keep_norm` h' = y ||h|| / ||y||, else h' = y.

    Loss: KL(after demonstrations || with the vectors) on the answer's tokens + 0.5 cross-entropy.

    Source: https://arxiv.org/abs/2406.13185 and the authors' repository, which starts v at N(0, 0.01) and alpha at 0.1.
    Here v starts at 0, so that the fit starts at the model itself. Which step size works best depends on alpha's start.

    Attributes:
        site: the layer's output (as the authors do for Idefics) or its MLP's (as they do for Idefics2).
        layers: where it acts.
        keep_norm: rescale every row to the length it had.
        alpha: where every alpha starts.
        alpha_rate: alpha's learning rate over v's; the authors use 2 to 10.
    """

    name: ClassVar[str] = "live"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.13185"
    summary: ClassVar[str] = "Learns a shift for every layer that stands for demonstrations."

    site: Literal["resid_out", "mlp_out"] = "resid_out"
    layers: tuple[int, ...] | Literal["all"] = "all"
    keep_norm: bool = True
    alpha: float = 0.1
    alpha_rate: float = 2.0
    losses: dict[str, float] = field(default_factory=lambda: {"kl_answer": 1.0, "ce": 0.5}, kw_only=True)

    def learning_rates(self) -> dict[str, float]:
        """Alpha's own rate."""
        return {"alpha": self.alpha_rate}

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Vectors (L, D) of zeros, factors (L,)."""
        count = len(layers_with(model_map, self.site, self.layers))
        return {"vector": torch.zeros(count, model_map.tower().width), "alpha": torch.full((count,), self.alpha)}

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One addition, over all layers."""
        layers = layers_with(model_map, self.site, self.layers)
        shift = ops.Add(fitted(self, "vector"), fitted(self, "alpha"), keep_norm=self.keep_norm)
        return [steer.Intervention(sites.Site(self.site, layers), shift)]
