"""What is done to a tensor. Every learnable op can start as the exact identity.

Shapes of parameters: a vector is (D,) at a width site and (d,) at a head site; at a head site (H,) may stand before it
for the chosen heads, and (L,) before that for the chosen layers; at a width site (L,) alone. Numbers likewise, without
the last dimension. Parameters may be any dtype and require gradients; they are used in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from ._params import Number, Ready, Slot
from ._rows import Append, Around, Drop, Write
from .contrast import Contrast
from .errors import InterventionError
from .gates import BoundCosine, BoundGate, BoundSigmoid, Reading
from .positions import Positions
from .positions import all as all_positions
from .sites import HEAD_SITES, STREAM_SITES, WIDTH_SITES

if TYPE_CHECKING:
    from .memory.seen import Seen

__all__ = [
    "Add", "Append", "Apply", "Around", "Contrast", "Drop", "Keep", "KeyBias", "LowRankQuery", "Op", "Prefix",
    "Replace", "Rotate", "Scale", "Write",
]  # fmt: skip

BoundOp = Callable[[torch.Tensor, Reading, torch.Tensor | None], torch.Tensor]
"""(x, reading, rows) -> new x; rows is a bool mask (B, T) or None for every row."""

TENSOR_SITES = (*WIDTH_SITES, *STREAM_SITES, *HEAD_SITES, "logits")


class Op(Protocol):
    """An op: the sites it makes sense at, and itself bound to one layer.

    An op with an attribute `needs_frame` that is true finds in `Reading.frame` where the running forward stands.
    """

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites where the op can act."""
        ...

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        """The op with its parameters for one layer."""
        ...


def _where(rows: torch.Tensor | None, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    y = y.to(x.dtype)
    return y if rows is None else torch.where(rows.view(*rows.shape, *[1] * (x.ndim - rows.ndim)), y, x)


def _as_wide_as(vector: torch.Tensor, bound: BoundOp) -> BoundOp:
    """A bound op that says how wide the rows are that it is for, so that others are refused in our words."""
    bound.width = vector.shape[-1]  # type: ignore[attr-defined]
    return bound


@dataclass(frozen=True, eq=False)
class Add:
    """x + a g v, or the same with each row's length kept (K1, K2; at `head_out` with a Sigmoid gate K3).

    Attributes:
        vector: v.
        scale: a.
        keep_norm: rescale every row to the length it had (LIVE, ICV).
        relative: multiply the vector by the row's own length first, so that `scale` is a ratio (ICV).
    """

    vector: torch.Tensor
    scale: Number = 1.0
    keep_norm: bool = False
    relative: bool = False
    sites: ClassVar[tuple[str, ...]] = TENSOR_SITES

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        def scaled() -> torch.Tensor:
            scale = slot.take("scale", self.scale, 0)
            vector = slot.take("vector", self.vector, 1, slot.width)
            wide = torch.promote_types(vector.dtype, torch.float32)
            return scale.to(vector.device, wide).unsqueeze(-1) * vector.to(wide)

        by_norms = self.keep_norm or self.relative
        if isinstance(gate, BoundSigmoid) and gate.of_query and not by_norms:
            return _gated_by_query(Ready(scaled, self.vector, self.scale, kernel="head_shift"), gate, self.vector)
        step = Ready(scaled, self.vector, self.scale, kernel="shift")
        step.on(self.vector)
        head_site = slot.heads is not None
        if gate is None and not by_norms:

            def plain(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
                v = step.on(x)
                return step.kernel(x, v, None, rows.unsqueeze(-1) if rows is not None and head_site else rows)

            return _as_wide_as(self.vector, plain)
        flags = {"keep_norm": self.keep_norm, "relative": self.relative, "cosine": isinstance(gate, BoundCosine)}
        strength_of = None if isinstance(gate, BoundCosine) else gate

        def add(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            v = step.on(x)
            strength = None
            if strength_of is not None:
                reading.vector = v
                strength = strength_of(x, reading)
            return step.kernel(x, v, strength, rows.unsqueeze(-1) if rows is not None and head_site else rows, **flags)

        return _as_wide_as(self.vector, add)


def _gated_by_query(step: Ready, gate: BoundSigmoid, vector: torch.Tensor) -> BoundOp:
    """K3: gate and shift in one operation, which picks the heads itself."""
    step.on(vector)

    def head_shift(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
        v, query = step.on(x), reading.query
        w, b = gate.on(x)
        layer_norm, heads = gate.layer_norm, reading.heads
        return step.kernel(x, query, w, b, v, reading.lse, rows, layer_norm=layer_norm, heads=heads)

    head_shift.picks_heads = True  # type: ignore[attr-defined]
    return head_shift


@dataclass(frozen=True, eq=False)
class Replace:
    """The vector in the tensor's place; with a gate g, x + g (v - x)."""

    vector: torch.Tensor
    sites: ClassVar[tuple[str, ...]] = TENSOR_SITES

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        vector = Ready(lambda: slot.take("vector", self.vector, 1, slot.width), self.vector)
        vector.on(self.vector)

        def replace(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            v = vector.on(x)
            if gate is None:
                return _where(rows, v.expand(x.shape), x)
            reading.vector = v
            return _where(rows, x + gate(x, reading) * (v - x), x)

        return _as_wide_as(self.vector, replace)


@dataclass(frozen=True, eq=False)
class Scale:
    """x times a factor: 0 removes, 1 is the identity; with a gate g, 1 + g (factor - 1)."""

    factor: Number
    sites: ClassVar[tuple[str, ...]] = TENSOR_SITES

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        factor = Ready(lambda: slot.take("factor", self.factor, 0).unsqueeze(-1), self.factor)
        factor.on(torch.empty(0))

        def scale(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            f = factor.on(x)
            return _where(rows, x * f if gate is None else x * (1 + gate(x, reading) * (f - 1)), x)

        return scale


@dataclass(frozen=True, eq=False)
class Rotate:
    """A rotation by `angle` radians in the plane of two vectors, which keeps every row's length.

    Attributes:
        first, second: span the plane; they are made orthonormal. The rotation goes from `first` towards `second`.
        angle: radians; 0 is the identity. A gate multiplies it.
    """

    first: torch.Tensor
    second: torch.Tensor
    angle: Number
    sites: ClassVar[tuple[str, ...]] = TENSOR_SITES

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        def axis() -> torch.Tensor:
            return torch.nn.functional.normalize(slot.take("first", self.first, 1, slot.width).double(), dim=-1)

        def other() -> torch.Tensor:
            u, v = axis(), slot.take("second", self.second, 1, slot.width).double()
            return torch.nn.functional.normalize(v - (v * u).sum(-1, keepdim=True) * u, dim=-1)

        first, second = Ready(axis, self.first), Ready(other, self.first, self.second)
        angle = Ready(lambda: slot.take("angle", self.angle, 0).unsqueeze(-1), self.angle)
        first.on(self.first), second.on(self.second), angle.on(self.first)

        def rotate(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            u, v, theta = first.on(x), second.on(x), angle.on(x)
            if gate is not None:
                theta = theta * gate(x, reading)
            a, b = (x * u).sum(-1, keepdim=True), (x * v).sum(-1, keepdim=True)
            turn, slide = torch.cos(theta) - 1, torch.sin(theta)
            return _where(rows, x + (turn * a - slide * b) * u + (slide * a + turn * b) * v, x)

        return _as_wide_as(self.first, rotate)


@dataclass(frozen=True, eq=False)
class LowRankQuery:
    """q + g sqrt(d / r) (q U_q) U_k^T at `head_q` (K4; Hyper-ICL, arXiv:2606.04434). U_k = 0 is the identity.

    Attributes:
        u_q, u_k: (d, r), (H, d, r) or (L, H, d, r), per query head.
    """

    u_q: torch.Tensor
    u_k: torch.Tensor
    sites: ClassVar[tuple[str, ...]] = ("head_q",)

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        heads = slot.heads or 1

        def full(name: str, value: torch.Tensor) -> torch.Tensor:
            taken = slot.take(name, value, 2, slot.width)
            return taken.expand(heads, *taken.shape[-2:])

        u_q = Ready(lambda: full("u_q", self.u_q), self.u_q, kernel="query_shift")
        u_k = Ready(lambda: full("u_k", self.u_k), self.u_k)
        u_q.on(self.u_q), u_k.on(self.u_k)

        def low_rank(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            first, second = u_q.on(x), u_k.on(x)
            if isinstance(gate, BoundSigmoid):
                w, b = gate.on(x)
                return u_q.kernel(x, first, second, w, b, lse=reading.lse, rows=rows, layer_norm=gate.layer_norm)
            strength = None if gate is None else gate(x, reading)
            return u_q.kernel(x, first, second, gate=strength, rows=rows)

        return low_rank


@dataclass(frozen=True, eq=False)
class Apply:
    """Any function of the tensor in the site's own layout; it must return a tensor of the same shape.

    At `cache` it takes and returns (keys, values), each (B, H_kv, S, d).
    """

    function: Callable[..., object]
    sites: ClassVar[tuple[str, ...]] = (*TENSOR_SITES, "cache")

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        inner = slot.where.split()[0] in ("head_q", "head_k", "head_v")

        def apply(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            given = x.transpose(-3, -2) if inner else x
            y = self.function(given)
            if not isinstance(y, torch.Tensor) or y.shape != given.shape:
                got = f"shape {list(y.shape)}" if isinstance(y, torch.Tensor) else f"a {type(y).__name__}"
                raise ValueError(f"ops.Apply at {slot.where}: the function took {list(given.shape)} and returned {got}")
            y = y.transpose(-3, -2) if inner else y
            return _where(rows, y if gate is None else x + gate(x, reading) * (y - x), x)

        return apply


@dataclass(frozen=True, eq=False)
class KeyBias:
    """S[b, h, i, j] += g[b, h, i] * value_h for keys j at `keys` (K5), before the softmax.

    Attributes:
        value: a number, (H,) or (L, H), in units of the scores after scaling; clamped to [-1e4, 1e4].
        keys: which keys; all of them changes nothing, since the softmax is normalised.
        relative: add value_h * |S| instead, |S| being the size of each scaled score before anything is added to it.
            Fused attention does not show its scores, so the chosen rows are worked out again one by one: choose few
            (`positions.answer()`), and eager or SDPA attention.
    """

    value: Number
    keys: Positions = field(default_factory=all_positions)
    relative: bool = False
    sites: ClassVar[tuple[str, ...]] = ("key_bias",)


@dataclass(frozen=True, eq=False)
class Prefix:
    """n extra keys and values per KV head that every query sees, without a position (HiFICL, prefix tuning).

    Attributes:
        keys: (H_kv, n, d) or (L, H_kv, n, d), used as they are: no RoPE is applied.
        values: (H_kv, n, d_v) or (L, H_kv, n, d_v).
    """

    keys: torch.Tensor
    values: torch.Tensor
    sites: ClassVar[tuple[str, ...]] = ("kv_prefix",)


@dataclass(frozen=True, eq=False)
class Keep:
    """Keep only some tokens in a layer's cache, at `cache`; the others are freed, and positions stay what they were.

    Attributes:
        function: takes a `steer.memory.Seen` and returns what to keep, bool (B, H_kv, S), or None for everything.
        every: choose again after every so many written tokens; None chooses once, where the prompt ends.
        window: how many queries before this forward's are kept for the choice, where it is made while writing.
        images: `function` asks where pictures are.
    """

    function: Callable[[Seen], torch.Tensor | None]
    every: int | None = None
    window: int = 1
    images: bool = False
    sites: ClassVar[tuple[str, ...]] = ("cache",)

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise InterventionError(f"every must be a number of tokens >= 1 or None, got {self.every!r}")
        if self.window < 1:
            raise InterventionError(f"window must be a number of queries >= 1, got {self.window!r}")
