"""What a result must beat before it says anything: gates that do not look, directions that mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

import steer
from steer import fitting, ops
from steer.gates import BoundGate, Gate, Reading
from steer.training import Learned
from steer_vectors.joint import Joint

# Which controls each row gets. "shuffled-labels" fits again, on answers dealt at random; "without-..." without a part.
OF = {
    "live": ("random-direction",),
    "head_shift": ("random-direction", "shuffled-labels"),
    "mimic": ("gate-mean", "gate-shuffled"),
    "hyper_icl": ("gate-mean", "gate-shuffled"),
    "gate": ("gate-mean", "gate-shuffled"),
    "joint": ("shuffled-labels", "without-keys", "without-heads", "without-layers"),
}


@dataclass
class Static(Joint):
    """Static vectors wherever one fits, for as many numbers as a gated method has: heads, MLPs and layers."""

    name: ClassVar[str] = "static"
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = "Static shifts of heads, MLPs and layers together."

    def learning_rates(self) -> dict[str, float]:
        return {}

    def _methods(self) -> dict[str, Learned]:
        return {
            "heads": steer.create("head_shift"),
            "mlps": steer.create("live", site="mlp_out", keep_norm=False, alpha=1.0),
            "layers": steer.create("live", alpha=1.0),
        }


def create(method: str, **configuration: Any) -> steer.Method:
    """A registered method, or the control of this file."""
    return Static(**configuration) if method == "static" else steer.create(method, **configuration)


@dataclass(frozen=True)
class Around:
    """A gate that reads what the gate inside it reads."""

    inner: Gate

    @property
    def needs_query(self) -> bool:
        return self.inner.needs_query

    @property
    def needs_lse(self) -> bool:
        return self.inner.needs_lse


@dataclass(frozen=True)
class Shuffled(Around):
    """A gate whose strengths go to another query of the batch: each row gets the next one's."""

    def bind(self, slot: Any) -> BoundGate:
        bound = self.inner.bind(slot)
        # From the end, so that queries of different lengths change places token by token from their last one.
        return lambda x, reading: bound(x, reading).roll(1, dims=0)


@dataclass(frozen=True)
class Averaged(Around):
    """A gate held at each layer's and head's mean, kept in `sums` while `learning`."""

    sums: dict[str, list[Any]]
    learning: bool

    def bind(self, slot: Any) -> BoundGate:
        bound, kept = self.inner.bind(slot), self.sums.setdefault(slot.where, [0.0, 0])

        def gate(x: torch.Tensor, reading: Reading) -> torch.Tensor:
            strength = bound(x, reading)
            if self.learning:
                kept[0] = kept[0] + strength.double().sum((0, 1))
                kept[1] += strength.shape[0] * strength.shape[1]
                return strength
            return (kept[0] / kept[1]).to(strength).expand_as(strength)

        return gate


def gate_shuffled(model: Any, method: steer.Method, asked: Sequence[Any], seed: int) -> list[Any]:
    """Every gate deals its strengths to other queries."""
    return [
        one if one.gate is None else replace(one, gate=Shuffled(one.gate))
        for one in method.interventions(steer.inspect(model))
    ]


def gate_mean(model: Any, method: steer.Method, asked: Sequence[Any], seed: int) -> list[Any]:
    """Every gate held at its mean over the dev queries' tokens, by layer and head."""
    sums: list[dict[str, list[Any]]] = []
    items = method.interventions(steer.inspect(model))

    def held(learning: bool) -> list[Any]:
        return [
            one if one.gate is None else replace(one, gate=Averaged(one.gate, sums[i], learning))
            for i, one in enumerate(items)
        ]

    sums = [{} for _ in items]
    fitting.score(model, asked, *held(True))
    return held(False)


def random_direction(model: Any, method: steer.Method, asked: Sequence[Any], seed: int) -> list[Any]:
    """Every vector replaced by a random one of its length."""
    generator = torch.Generator().manual_seed(seed)

    def turned(vector: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(vector.shape, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=-1) * vector.norm(dim=-1, keepdim=True)

    return [
        replace(one, op=replace(one.op, vector=turned(one.op.vector))) if isinstance(one.op, ops.Add) else one
        for one in method.interventions(steer.inspect(model))
    ]


MAKE: dict[str, Callable[..., list[Any]]] = {
    "gate-shuffled": gate_shuffled,
    "gate-mean": gate_mean,
    "random-direction": random_direction,
}
