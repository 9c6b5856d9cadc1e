"""The method itself: replace the arithmetic, keep the shape."""

import dataclasses
import typing

import steer
import torch


@dataclasses.dataclass
class MyPlugin(steer.training.Learned):
    """h + strength * v after the chosen layers; v is learned, and zero where a fit starts.

    A method that learns nothing extends `steer.Method` and has no `initial`; one that extracts instead of training
    extends it too, and has a `fit` of its own.

    Attributes:
        layers: of the text tower, from 0.
        strength: what v is multiplied by.
    """

    name: typing.ClassVar[str] = "my_plugin"
    paper: typing.ClassVar[str] = "https://example.org/where-the-idea-is-from"
    summary: typing.ClassVar[str] = "Learns one vector that is added after chosen layers."

    layers: tuple[int, ...] = (1,)
    strength: float = 1.0

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Where a fit starts: v, fp32 (D,)."""
        return {"vector": torch.zeros(model_map.tower().width)}

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """What to do where; no module of the model is named, so that it runs on every architecture."""
        vector = self.strength * steer.fitting.fitted(self, "vector")
        return [steer.Intervention(steer.sites.resid_out(self.layers), steer.ops.Add(vector))]
