"""A small method, and models' maps to fit it on, for the tests of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

import steer
from steer.model_map import Attention, Layer, ModelMap, Tower


@dataclass
class Toy(steer.Method):
    """Adds one vector a layer."""

    name: ClassVar[str] = "toy"
    paper: ClassVar[str] = "https://example.org/toy"
    summary: ClassVar[str] = "Adds one vector a layer."

    strength: float = 1.0
    layers: tuple[int, ...] | Literal["all"] = "all"
    note: str | None = None
    options: dict[str, int] | None = None

    def interventions(self, model_map: ModelMap) -> list[steer.Intervention]:
        indices = range(len(model_map.tower().layers)) if self.layers == "all" else self.layers
        vectors = self.tensors["vectors"]
        return [
            steer.Intervention(steer.sites.resid_out([index]), steer.ops.Add(vectors[row], self.strength))
            for row, index in enumerate(indices)
        ]


class ToyPlugin:
    """The toy as a plugin."""

    @steer.hookimpl
    def steer_register_methods(self, registry: object) -> None:
        registry.add(Toy)


def toy_map(
    width: int = 8, heads: int = 2, layers: int = 3, model_type: str = "toy", towers: Sequence[str] = ("text",)
) -> ModelMap:
    """A map of a model that does not exist."""

    def layer(index: int) -> Layer:
        attention = Attention("softmax", f"layers.{index}.attn", heads, heads, width // heads, width // heads)
        return Layer(index, f"layers.{index}", attention)

    tower = {name: Tower(name, name, width, tuple(layer(index) for index in range(layers))) for name in towers}
    return ModelMap("ToyModel", model_type, tower)


def fitted() -> Toy:
    """A toy with tensors and provenance."""
    toy = Toy(strength=0.5, layers=(0, 2), note="kept", options={"rank": 4})
    toy.tensors = {"vectors": torch.arange(16, dtype=torch.float32).reshape(2, 8), "count": torch.tensor(7)}
    toy.record_provenance(toy_map(), seed=3, data=[steer.Example("what?", "that")])
    return toy
