"""HiFICL (CVPR 2026): a few learned keys and values that every query may attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

import steer
from steer import ops, sites
from steer.fitting import fitted
from steer.training import Learned

from ._shared import head_groups


@dataclass
class HiFICL(Learned):
    """n learned virtual demonstrations for each key-value head: keys K_A K_B and values V_A V_B, of rank r.

    Use: attention over [K_A K_B; K], [V_A V_B; V], for every query, without a position. That is exactly
    (1 - mu) O + mu softmax(q (K_A K_B)^T / sqrt(d)) V_A V_B, mu the share of attention that the virtual keys get.

    Loss: cross-entropy alone; no teacher.

    Source: https://arxiv.org/abs/2603.12760 and the authors' code, which has them for each query head; with grouped
    queries they are for each key-value head here, as the cache's own rows are. V_B starts at 0 and K_B at 0.01 N(0, 1),
    as there: the values are then 0, but the keys take their share of attention, so that the fit does not start exactly
    at the model. No start with finite keys would.

    Attributes:
        virtual: n, virtual demonstrations.
        rank: r.
        layers: where it acts; by default every layer that has softmax attention.
    """

    name: ClassVar[str] = "hificl"
    paper: ClassVar[str] = "https://arxiv.org/abs/2603.12760"
    summary: ClassVar[str] = "Learns a few virtual keys and values for every head."

    virtual: int = 8
    rank: int = 8
    layers: tuple[int, ...] | Literal["all"] = "all"

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """K_A, V_A (L, H_kv, n, r), K_B (L, H_kv, r, d), V_B (L, H_kv, r, d_v)."""
        found = {}
        for one in head_groups(model_map, self.layers):
            size = (len(one.layers), one.kv_heads)
            for kind, width, start in (("k", one.head_dim, 0.01), ("v", one.value_dim, 0.0)):
                found[f"{kind}_a{one.suffix}"] = torch.randn(*size, self.virtual, self.rank, generator=generator)
                found[f"{kind}_b{one.suffix}"] = start * torch.randn(*size, self.rank, width, generator=generator)
        return found

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One prefix for all layers of one shape."""
        made = []
        for one in head_groups(model_map, self.layers):
            keys, values = (
                fitted(self, f"{kind}_a{one.suffix}") @ fitted(self, f"{kind}_b{one.suffix}") for kind in ("k", "v")
            )
            made.append(steer.Intervention(sites.kv_prefix(one.layers), ops.Prefix(keys, values)))
        return made
