"""Query-adaptive strength for any shift, by a sigmoid per token (and head); and the three kinds of gate by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch

import steer
from steer import gates, ops
from steer.errors import InterventionError, unknown_name
from steer.fitting import fitted
from steer.training import Learned

from ._wrapper import Wrapper

_OF_QUERY = ("head_q", "head_out")
_NEVER = ("logits", "key_bias", "kv_prefix", "cache")


@dataclass(kw_only=True)
class Gate(Wrapper, Learned):
    """A fitted method whose shifts act as strongly as each token asks, by a gate learned for every layer (and head).

    Every shift of the wrapped method that adds or replaces a vector and has no gate of its own gets one, in fp32:
    g = ceiling sigmoid(<LN(q), w> + b), LN without parameters (eps 1e-5). At `head_out` and `head_q` q is the head's
    query (d,) after RoPE, with w (H, d) and b (H,) for each layer. Elsewhere it is the row x of the tensor itself, with
    w (D,) and one b for each layer, or at `head_k` and `head_v` for each head. What else it does stays.

    Start: w = 0 and b = -ln(ceiling - 1), so that g = 1 and this is the wrapped method. That is not the identity, from
    which other learned methods start.

    Source: the gate of Hyper-ICL, https://arxiv.org/abs/2606.04434, and of MimIC, https://arxiv.org/abs/2504.08851,
    without its log-sum-exp; here around a vector that another method found.

    Attributes:
        ceiling: the largest strength, above 1, as a multiple of the wrapped method's.
        train_inner: fit the wrapped method's tensors along with the gates; numbers among them stay.
    """

    name: ClassVar[str] = "gate"
    paper: ClassVar[str] = "https://arxiv.org/abs/2606.04434"
    summary: ClassVar[str] = "Lets every token say how strongly a fitted method's shifts act on it."

    ceiling: float = 2.0
    train_inner: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ceiling > 1:
            raise InterventionError(f"the ceiling of method {self.name!r} must be above 1, got {self.ceiling}")

    def fit(
        self, model: torch.nn.Module, processor: Any, examples: Sequence[steer.Example], *, seed: int = 0, **more: Any
    ) -> Self:
        """Learn the gates, as `steer.training.Learned.fit`; what was not trained is kept bit for bit.

        Returns:
            Itself, with `tensors` "weight.<i>" and "bias.<i>" for the i-th shift, besides those of the wrapped method.

        Raises:
            SteerError: no method to wrap, or none of its shifts can have a gate; or as `Learned.fit`.
        """
        before = {name: one for name, one in self.tensors.items() if name in self.frozen_tensors()}
        super().fit(model, processor, examples, seed=seed, **more)
        self.tensors |= before
        return self

    def initial(self, model_map: steer.ModelMap, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Gates that are 1, and the wrapped method's tensors as they are."""
        made = {name: one for name, one in self.tensors.items() if name.startswith("inner.")}
        bias = -torch.tensor(self.ceiling - 1, dtype=torch.float64).log().float()
        for index, item in self._gated(model_map):
            weight = torch.zeros(_shape(item, model_map, self.name))
            made[f"weight.{index}"] = weight
            made[f"bias.{index}"] = bias.expand(weight.shape[:-1]).clone()
        if not any(name.startswith("weight.") for name in made):
            raise steer.SteerError(
                f"method {self.name!r} has nothing to gate: no shift of what it wraps adds or replaces a vector "
                "without having a gate already"
            )
        return made

    def frozen_tensors(self) -> frozenset[str]:
        """The wrapped method's, or with `train_inner` the plain numbers among them."""
        inner = {name: one for name, one in self.tensors.items() if name.startswith("inner.")}
        return frozenset(name for name, one in inner.items() if not self.train_inner or one.ndim == 0)

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The wrapped method's, with their gates."""
        items = self._shifts(model_map)
        for index, item in self._gated(model_map):
            weight, bias = fitted(self, f"weight.{index}"), fitted(self, f"bias.{index}")
            of_query = item.site.name in _OF_QUERY
            sigmoid = gates.Sigmoid(weight, bias, layer_norm=True, of_query=of_query)
            items[index] = replace(item, gate=_Times(sigmoid, self.ceiling))
        return items

    def _shifts(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        return [item for method in self.wrapped() for item in method.interventions(model_map)]

    def _gated(self, model_map: steer.ModelMap) -> list[tuple[int, steer.Intervention]]:
        """The shifts that have a gate here, with their places among all."""
        return [
            (index, item)
            for index, item in enumerate(self._shifts(model_map))
            if item.gate is None and isinstance(item.op, ops.Add | ops.Replace) and item.site.name not in _NEVER
        ]


@dataclass(frozen=True, eq=False)
class _Times:
    """A gate times a number."""

    gate: gates.Gate
    factor: float

    @property
    def needs_query(self) -> bool:
        return self.gate.needs_query

    @property
    def needs_lse(self) -> bool:
        return self.gate.needs_lse

    def bind(self, slot: Any) -> gates.BoundGate:
        gate = self.gate.bind(slot)
        return lambda x, reading: self.factor * gate(x, reading)


def _shape(item: steer.Intervention, model_map: steer.ModelMap, method: str) -> tuple[int, ...]:
    """Of a gate's weight: (D,) at embeddings, (L, D), or (L, H, d) at head sites."""
    site = item.site
    width = model_map.tower(site.tower).width
    if site.name == "embeddings":
        return (width,)
    targets = model_map.targets(site)
    if not site.has_heads:
        return len(targets), width
    shapes = set()
    for target in targets:
        mixer = target.attention
        assert mixer is not None
        of_values = site.name == "head_v"
        total = mixer.num_kv_heads if site.name in ("head_k", "head_v") else mixer.num_heads
        shapes.add((len(target.heads or range(total or 0)), mixer.value_dim if of_values else mixer.head_dim))
    if len(shapes) != 1:
        raise InterventionError(
            f"method {method!r} cannot gate {item.label!r}: its layers have different heads {sorted(shapes, key=str)}; "
            "let the wrapped method make one intervention for each kind of layer"
        )
    heads, size = shapes.pop()
    return len(targets), heads, int(size or 0)


KINDS = {"sigmoid": "gate", "threshold": "gate_threshold", "retrieval": "gate_retrieval"}
"""Registered names by kind."""


def over(kind: str, *methods: steer.Method, **config: Any) -> Wrapper:
    """A gate of any kind around fitted methods: `"sigmoid"`, `"threshold"` or `"retrieval"`.

    Raises:
        UnknownNameError: there is no such kind, or no such field; the message lists what there is.
    """
    if kind not in KINDS:
        raise unknown_name("kind of gate", kind, KINDS)
    made = steer.create(KINDS[kind], **config)
    assert isinstance(made, Wrapper)
    return made.over(*methods)
