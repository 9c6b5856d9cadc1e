"""How strongly an op acts, per token and head. Without a gate an op acts fully."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from steer_kernels import sigmoid_gate

from ._frame import Frame
from ._params import Number, Ready, Slot
from .errors import InterventionError

__all__ = ["BoundGate", "Cosine", "Gate", "Given", "Sigmoid", "Threshold"]


@dataclass
class Reading:
    """What a gate may look at besides the tensor being changed.

    Attributes:
        query: (..., H, d), the chosen heads' queries after RoPE; at `head_q`, and at `head_out` where the gate asks.
        lse: (..., H), log-sum-exp of each query's masked scores.
        vector: the op's own vector.
        heads: int64 (n,), which of the heads move, for an op that picks them itself; None for all that it is given.
        frame: where this forward stands in its sequence, for an op whose `needs_frame` is true.
    """

    query: torch.Tensor | None = None
    lse: torch.Tensor | None = None
    vector: torch.Tensor | None = None
    heads: torch.Tensor | None = None
    frame: Frame | None = None


BoundGate = Callable[[torch.Tensor, Reading], torch.Tensor]
"""Takes the tensor (..., D) or (..., H, d) and returns the strength (..., 1) or (..., H, 1)."""


class Gate(Protocol):
    """A gate: what it needs to read, and itself bound to one layer."""

    @property
    def needs_query(self) -> bool:
        """Whether it reads the query."""
        ...

    @property
    def needs_lse(self) -> bool:
        """Whether it reads the log-sum-exp of the scores."""
        ...

    def bind(self, slot: Slot) -> BoundGate:
        """The gate with its parameters for one layer."""
        ...


@dataclass(frozen=True, eq=False)
class Sigmoid:
    """sigmoid(<f(q), w> + b - c lse) on the token's own query (K3, K4; MimIC, Hyper-ICL).

    Attributes:
        weight: w, (d,), (H, d) or (L, H, d).
        bias: b, a number, (H,) or (L, H).
        layer_norm: f is an affine-free LayerNorm (eps 1e-5) instead of the identity.
        minus_lse: subtract the true masked log-sum-exp of that row's scores (c = 1).
        of_query: read the query; False reads the tensor that is changed, at any site.
    """

    weight: torch.Tensor
    bias: Number = 0.0
    layer_norm: bool = False
    minus_lse: bool = False
    of_query: bool = True

    @property
    def needs_query(self) -> bool:
        return self.of_query

    @property
    def needs_lse(self) -> bool:
        return self.minus_lse

    def bind(self, slot: Slot) -> BoundGate:
        weight = Ready(lambda: slot.take("gate weight", self.weight, 1), self.weight)
        bias = Ready(lambda: slot.take("gate bias", self.bias, 0), self.bias)
        weight.on(torch.empty(0))
        return BoundSigmoid(weight, bias, self.layer_norm, self.of_query)


@dataclass(frozen=True, eq=False)
class BoundSigmoid:
    """A Sigmoid at one layer; ops whose kernel has the gate inside take its parameters instead of its value."""

    weight: Ready
    bias: Ready
    layer_norm: bool
    of_query: bool

    def on(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight (H or 1, d) and the bias (H or 1,) on x's device."""
        return self.weight.on(x), self.bias.on(x)

    def __call__(self, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        source = reading.query if self.of_query else x
        assert source is not None
        return sigmoid_gate(source, *self.on(x), reading.lse, self.layer_norm)


@dataclass(frozen=True, eq=False)
class Cosine:
    """1 + relu(-cos(x, v)): more where the tensor points away from the op's vector (ICV, arXiv:2311.06668)."""

    needs_query = False
    needs_lse = False

    def bind(self, slot: Slot) -> BoundGate:
        return BoundCosine()


class BoundCosine:
    """A Cosine; `Add`'s kernel has it inside, other ops take its value."""

    def __call__(self, x: torch.Tensor, reading: Reading) -> torch.Tensor:
        assert reading.vector is not None
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        cosine = torch.nn.functional.cosine_similarity(wide, reading.vector, dim=-1).unsqueeze(-1)
        return 1 + torch.relu(-cosine)


@dataclass(frozen=True, eq=False)
class Threshold:
    """1 where cos(x, direction) is above a threshold, else 0 (or the reverse), token by token.

    Attributes:
        direction: (D,), (L, D) or, at head sites, (H, d), (L, H, d).
        above: the threshold, in [-1, 1].
        reverse: act below the threshold instead.
    """

    direction: torch.Tensor
    above: float = 0.0
    reverse: bool = False

    needs_query = False
    needs_lse = False

    def bind(self, slot: Slot) -> BoundGate:
        direction = Ready(lambda: slot.take("gate direction", self.direction, 1, slot.width), self.direction)
        direction.on(torch.empty(0))

        def gate(x: torch.Tensor, reading: Reading) -> torch.Tensor:
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            cosine = torch.nn.functional.cosine_similarity(wide, direction.on(x), dim=-1).unsqueeze(-1)
            chosen = cosine <= self.above if self.reverse else cosine > self.above
            return chosen.to(wide.dtype)

        return gate


@dataclass(frozen=True, eq=False)
class Given:
    """Strengths from elsewhere, such as a router.

    Attributes:
        values: one number per batch row, (B,).
    """

    values: torch.Tensor

    needs_query = False
    needs_lse = False

    def bind(self, slot: Slot) -> BoundGate:
        values = Ready(lambda: self.values, self.values)

        def gate(x: torch.Tensor, reading: Reading) -> torch.Tensor:
            given = values.on(x)
            if x.shape[0] % given.shape[0]:
                raise InterventionError(
                    f"gates.Given has {given.shape[0]} rows at {slot.where}, the batch has {x.shape[0]}"
                )
            rows = given.repeat_interleave(x.shape[0] // given.shape[0])
            return rows.view(-1, *[1] * (x.ndim - 1))

        return gate
