"""Virtual demonstrations, a gated shift of every head and a shift of every layer, learned together (ours)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

import steer
from steer.fitting import fitted
from steer.training import Learned

from .hificl import HiFICL
from .live import LIVE
from .mimic import MimIC


@dataclass
class Joint(Learned):
    """Three stand-ins for demonstrations, each for what the others cannot do, fitted as one.

    What a query gets from attending to demonstrations is a share mu of attention times what it reads there. The parts:

    - `keys`: n virtual demonstrations, rows of keys and values in the cache (HiFICL): a query chooses among them, so
      that one fit holds rules for different queries;
    - `heads`: a vector for every head, added with the share of attention that demonstrations would get (MimIC): what
      is read whatever the query is, without a place in the softmax for it to compete for;
    - `layers`: a vector for every layer, norm kept (LIVE): the mean change that is left.

    Loss: as LIVE's, the answers' KL to the model after demonstrations + 0.5 cross-entropy.

    This is steer's own combination of https://arxiv.org/abs/2603.12760, https://arxiv.org/abs/2504.08851 and
    https://arxiv.org/abs/2406.13185; what each part brings is in docs/results/vectors.md.

    Attributes:
        virtual, rank: of the virtual demonstrations.
        alpha: where the layers' factors start.
        parts: which of "keys", "heads" and "layers" there are.
        layers: where all of them act; by default everywhere they can.
    """

    name: ClassVar[str] = "joint"
    paper: ClassVar[str] = "https://arxiv.org/abs/2603.12760"
    summary: ClassVar[str] = "Learns virtual demonstrations, gated head shifts and layer shifts together (ours)."

    virtual: int = 16
    rank: int = 8
    alpha: float = 1.0
    parts: tuple[Literal["keys", "heads", "layers"], ...] = ("keys", "heads", "layers")
    layers: tuple[int, ...] | Literal["all"] = "all"
    losses: dict[str, float] = field(default_factory=lambda: {"kl_answer": 1.0, "ce": 0.5}, kw_only=True)

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in ("keys", "heads", "layers"):
                raise steer.errors.unknown_name("part of method 'joint'", part, ("keys", "heads", "layers"))
        if not self.parts:
            raise steer.errors.InterventionError("method 'joint' needs at least one part")

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Every part's own start, under the part's name."""
        return {
            f"{part}.{name}": value
            for part, method in self._methods().items()
            for name, value in method.initial(model_map, generator).items()
        }

    def learning_rates(self) -> dict[str, float]:
        """Every part's own rates."""
        return {
            f"{part}.{name}": rate
            for part, method in self._methods().items()
            for name, rate in method.learning_rates().items()
        }

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """Those of all parts: keys and values first, then heads, then layers."""
        made = []
        for part, method in self._methods().items():
            names = [name for name in self.tensors if name.startswith(f"{part}.")] or [part]
            method.tensors = {name.removeprefix(f"{part}."): fitted(self, name) for name in names}
            made += method.interventions(model_map)
        return made

    def _methods(self) -> dict[str, Learned]:
        made: dict[str, Learned] = {
            "keys": HiFICL(virtual=self.virtual, rank=self.rank, layers=self.layers),
            "heads": MimIC(layers=self.layers),
            "layers": LIVE(layers=self.layers, alpha=self.alpha),
        }
        return {part: method for part, method in made.items() if part in self.parts}
