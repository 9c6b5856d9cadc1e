"""What a user writes, for the type checker only: the public names must be typed from the outside, in strict mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, assert_type

import torch

import steer
from steer.registry import MethodInfo, MethodRegistry


@dataclass
class Mine(steer.Method):
    """A plugin's method."""

    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "https://example.org"
    summary: ClassVar[str] = "Scales heads."

    factor: float = 1.0

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One for each op."""
        site = steer.sites.head_out([0], [1], positions=steer.positions.image())
        vector = self.tensors["vector"]
        return [
            steer.Intervention(site, steer.ops.Scale(self.factor)),
            steer.Intervention(site, steer.ops.Add(vector, keep_norm=True), steer.gates.Sigmoid(vector)),
        ]


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """A plugin's hook."""
    registry.add(Mine)


def use(model: torch.nn.Module, processor: Any, examples: list[steer.Example], folder: Path) -> None:
    """Each public function once."""
    assert_type(steer.inspect(model), steer.ModelMap)
    assert_type(steer.methods(), dict[str, MethodInfo])
    assert_type(steer.create("mine", factor=0.5), steer.Method)
    assert_type(Mine(0.5).fit(model, processor, examples, seed=1), Mine)
    assert_type(Mine.from_pretrained(folder), Mine)
    assert_type(steer.load(folder, model), steer.Method)
    with steer.attach(model, Mine(), strict=False) as session:
        assert_type(session, steer.Session)
    with steer.record(model, steer.sites.resid_out(), stop=True) as acts:
        acts["resid_out", 0]
    try:
        Mine().save_pretrained(folder)
    except steer.errors.InterventionError as error:
        raise steer.SteerError(str(error)) from error
