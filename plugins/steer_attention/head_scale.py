"""Heads turned up or down by a factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import steer
from steer import ops, sites

from ._heads import Heads, as_pairs, chosen
from ._per_head import by_layer, per_head
from ._rows import Where, check_where, rows


@dataclass
class HeadScale(steer.Method):
    """What chosen heads say, times a factor.

    Use, for o (B, T, H, d_v), the input of the output projection, and the chosen heads h at the chosen tokens:
    o_h' = factor_h o_h. 1 changes no bit, 0 silences, a negative one turns what the head says into its opposite.
    It needs no fitting.

    Source: https://arxiv.org/abs/1905.10650, whose masks are factors of 0 and 1.

    Attributes:
        heads: "all"; (layer, head) pairs; the heads of each layer, such as {3: [0, 5]}; or a `steer.HeadMap`, whose 10
            top heads are taken. Kept as pairs.
        factor: one number, or one for each of `heads` in their order.
        where: "all" tokens; those from which the "answer" is written, the prompt's last and every one after it; or
            "last_prompt".

    Raises:
        InterventionError: `heads` is none of these, empty, or names a head twice; a factor that is no finite number.
        UnknownNameError: an unknown `where`.
    """

    name: ClassVar[str] = "head_scale"
    paper: ClassVar[str] = "https://arxiv.org/abs/1905.10650"
    summary: ClassVar[str] = "Multiplies what chosen attention heads say by a factor."

    heads: Heads = "all"
    factor: float | tuple[float, ...] = 1.0
    where: Where = "all"

    def __post_init__(self) -> None:
        self.heads = as_pairs(self.heads, self.name)
        self.factor = per_head(self.factor, self.heads, "factor", self.name)
        check_where(self.where, self.name)

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One for each layer that has chosen heads.

        Raises:
            InterventionError: another number of factors than heads.
        """
        picked = chosen(self.heads, model_map, self.name)
        where = rows(self.where)
        return [
            steer.Intervention(sites.head_out(one.layer, one.heads, positions=where), ops.Scale(factor))
            for one, factor in zip(picked, by_layer(self.factor, picked, "factor", self.name), strict=True)
        ]
