"""Hyper-ICL (Alipour Talemi, Kashiani and Afghah, ICML 2026): a gated low-rank change of attention's scores."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

import steer
from steer import gates, ops, sites, training
from steer.fitting import fitted
from steer.training import Learned

from ._shared import head_groups


@dataclass
class HyperICL(Learned):
    """For each head a low-rank term added to the scores before the softmax, gated for each query token.

    Use: S' = Q K^T / sqrt(d) + Diag(g) (Q U_q)(K U_k)^T / sqrt(r), g = sigmoid(LN(Q) w + b), LN affine-free, Q and K
    after RoPE. Since the term is bilinear, it is done to the query alone: q' = q + g sqrt(d / r) (q U_q) U_k^T. In a
    model that scales its scores by c instead of 1 / sqrt(d), the term comes out c sqrt(d) times as large.

    Loss: an anchor to the hidden states after demonstrations + 0.5 cross-entropy. The default anchor is the mean
    squared difference; `losses={"lorentz": 1.0, "ce": 0.5}` is the paper's hyperbolic one, in a form that stays finite.

    Source: https://arxiv.org/abs/2606.04434, equations 3 to 17. The authors' code is not public; where the paper is
    silent: LN has no affine terms, the start is U_k = 0, w = 0, b = 0 (the model itself), U_q from N(0, 1 / d).

    Attributes:
        rank: r; the paper uses 4.
        layers: where it acts; by default every layer that has softmax attention.
        gated: with False, g is 1 (the paper's "layer + head" ablation).
        curvature, scale: of the `lorentz` loss; see `steer.training.losses.lorentz`.
    """

    name: ClassVar[str] = "hyper_icl"
    paper: ClassVar[str] = "https://arxiv.org/abs/2606.04434"
    summary: ClassVar[str] = "Learns a low-rank change of every head's attention scores, gated for each token."

    rank: int = 4
    layers: tuple[int, ...] | Literal["all"] = "all"
    gated: bool = True
    curvature: float = 0.1
    scale: float | None = None
    losses: dict[str, float] = field(default_factory=lambda: {"mse": 1.0, "ce": 0.5}, kw_only=True)

    def state_losses(self) -> dict[str, training.StateLoss]:
        """The hyperbolic anchor with this method's curvature and scale."""
        anchor = functools.partial(training.losses.lorentz, curvature=self.curvature, scale=self.scale)
        return {**super().state_losses(), "lorentz": anchor}

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """U_q and U_k (L, H, d, r); gate weights (L, H, d) and biases (L, H)."""
        found = {}
        for one in head_groups(model_map, self.layers):
            size = (len(one.layers), one.heads, one.head_dim)
            start = torch.randn(*size, self.rank, generator=generator) * one.head_dim**-0.5
            found[f"u_q{one.suffix}"] = start
            found[f"u_k{one.suffix}"] = torch.zeros(*size, self.rank)
            if self.gated:
                found[f"weight{one.suffix}"] = torch.zeros(size)
                found[f"bias{one.suffix}"] = torch.zeros(size[:2])
        return found

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One query shift for all layers of one shape."""
        made = []
        for one in head_groups(model_map, self.layers):
            op = ops.LowRankQuery(fitted(self, f"u_q{one.suffix}"), fitted(self, f"u_k{one.suffix}"))
            gate = None
            if self.gated:
                weight, bias = fitted(self, f"weight{one.suffix}"), fitted(self, f"bias{one.suffix}")
                gate = gates.Sigmoid(weight, bias, layer_norm=True)
            made.append(steer.Intervention(sites.head_q(one.layers), op, gate))
        return made
