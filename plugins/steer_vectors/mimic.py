"""MimIC (Jiang et al., CVPR 2025): a shift for every head, as strong as the query would look at demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

import steer
from steer import gates, ops, sites
from steer.fitting import fitted
from steer.training import Learned

from ._shared import head_groups


@dataclass
class MimIC(Learned):
    """Attention over demonstrations as one learned vector for each head, weighted by a learned share of attention.

    Use, for o (B, T, H, d_v), the input of the output projection, and q the query after RoPE:
    o_h' = o_h + sigmoid(<q, w_h> + b_h - lse) v_h, with lse = log sum_j exp(<q, k_j> / sqrt(d)) over the keys that this
    query sees. exp(<q, w_h> + b_h) stands for the sum over the demonstrations' keys, so the sigmoid is the share of
    attention that they would get.

    Loss: mean squared difference to the hidden states after demonstrations (what each MLP adds), + 0.5 cross-entropy.

    Source: https://arxiv.org/abs/2504.08851 and the authors' code. There, in training only, lse runs over all keys of a
    batch, later tokens and padding included; here it is the causal, masked one, in training and in cached decoding.
    The vectors start at 0 (there N(0, 1e-6)), so that the fit starts at the model itself.

    Attributes:
        layers: where it acts; by default every layer that has softmax attention.
    """

    name: ClassVar[str] = "mimic"
    paper: ClassVar[str] = "https://arxiv.org/abs/2504.08851"
    summary: ClassVar[str] = "Learns a shift for every head, gated by the share of attention demonstrations would get."

    layers: tuple[int, ...] | Literal["all"] = "all"
    losses: dict[str, float] = field(default_factory=lambda: {"mse": 1.0, "ce": 0.5}, kw_only=True)
    align: Literal["resid_out", "mlp_out", "attn_out"] = field(default="mlp_out", kw_only=True)

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Vectors (L, H, d_v) of zeros; gate weights (L, H, d) from N(0, 0.02), biases (L, H) of zeros."""
        found = {}
        for one in head_groups(model_map, self.layers):
            size = (len(one.layers), one.heads)
            found[f"vector{one.suffix}"] = torch.zeros(*size, one.value_dim)
            found[f"weight{one.suffix}"] = 0.02 * torch.randn(*size, one.head_dim, generator=generator)
            found[f"bias{one.suffix}"] = torch.zeros(*size)
        return found

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One gated addition for all layers of one shape."""
        made = []
        for one in head_groups(model_map, self.layers):
            gate = gates.Sigmoid(fitted(self, f"weight{one.suffix}"), fitted(self, f"bias{one.suffix}"), minus_lse=True)
            op = ops.Add(fitted(self, f"vector{one.suffix}"))
            made.append(steer.Intervention(sites.head_out(one.layers), op, gate))
        return made
