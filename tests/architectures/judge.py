"""The judge: does steering one head give what editing the weights gives, and is the model as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn

import steer
from steer import ops, sites
from steer.model_map import Attention, Layer, ModelMap, Tower
from steer.testing._configs import TINY, missing
from steer.testing._inputs import Inputs, inputs_for, reached
from steer.testing._tiny import tiny_model

from .exceptions import NO_VISION_HEADS

TOLERANCE, EFFECT = 1e-5, 1e-3


@dataclass(frozen=True)
class Case:
    """A tiny model of one class with inputs that run it.

    Attributes:
        reached: the towers whose attention those inputs run.
        plain: its outputs, untouched.
    """

    model: nn.Module
    map: ModelMap
    inputs: Inputs
    reached: frozenset[str]
    plain: list[torch.Tensor]


@dataclass(frozen=True)
class Verdict:
    """One head of one layer.

    Attributes:
        off: largest difference between the steered and the edited model's outputs, relative to the largest output
            where that is above 1.
        effect: the same between the edited model and the untouched one.
        restored: whether the outputs after the session are those before it, bit for bit.
    """

    where: str
    off: float
    effect: float
    restored: bool

    @property
    def passed(self) -> bool:
        return self.off <= TOLERANCE and self.effect >= EFFECT and self.restored

    def __str__(self) -> str:
        kept = "restored" if self.restored else "NOT restored"
        return f"{self.where}: off by {self.off:.1e}, effect {self.effect:.1e}, {kept}"


@dataclass(frozen=True)
class Outcome:
    """What the test of one kind of tower of one class found."""

    status: Literal["pass", "fail", "skip"]
    detail: str


def head_edit(cls: type[nn.Module], kind: str) -> Outcome:
    """Judge every tower of a kind: `text`, `vision`, or `other` for the rest."""
    why = missing(cls.__name__)
    if why:
        return Outcome("skip", why)
    this = case(cls)
    towers = [t for t in this.map.towers.values() if (t.kind if t.kind in ("text", "vision") else "other") == kind]
    headed = [tower for tower in towers if any(has_heads(layer.attention) for layer in tower.layers)]
    run = [tower for tower in headed if tower.name in this.reached]
    why = NO_VISION_HEADS.get(cls.__name__) if kind == "vision" else None
    if why:
        return Outcome("fail" if headed else "skip", why)
    if not run:
        found = f"no {kind} tower" if not towers else "no attention heads" if not headed else "not run by a picture"
        return Outcome("skip" if kind == "other" else "fail", f"{found}; towers: {', '.join(this.map.towers)}")
    verdicts = [verdict for tower in run for verdict in judge(this, tower)]
    worst = [verdict for verdict in verdicts if not verdict.passed]
    return Outcome("fail" if worst else "pass", "; ".join(map(str, worst or verdicts)))


@lru_cache(maxsize=1)
def case(cls: type[nn.Module]) -> Case:
    """The tiny model of a class, mapped, with its inputs; kept until the next class is asked for."""
    model = tiny_model(cls)
    model_map = steer.inspect(model)
    inputs = inputs_for(model, model_map, TINY.get(cls.__name__, {}).get("inputs"))
    return Case(model, model_map, inputs, frozenset(reached(model, model_map, inputs)), _run(model, inputs))


def judge(case: Case, tower: Tower) -> list[Verdict]:
    """One head in one layer of each kind that the tower has."""
    return [_judge_kind(case, tower, layers) for layers in _by_kind(case.model, tower).values()]


def has_heads(attention: Attention | None) -> bool:
    """Whether it is softmax attention, as opposed to a mixer without heads over keys."""
    return attention is not None and attention.kind == "softmax"


def _by_kind(model: nn.Module, tower: Tower) -> dict[tuple[Any, ...], list[Layer]]:
    """Layers by their attention's class, sizes and place in `layer_types`; in each list the first layer comes last."""
    kinds: dict[tuple[Any, ...], list[Layer]] = {}
    for layer in [*tower.layers[1:], tower.layers[0]]:
        a = layer.attention
        if a is not None and has_heads(a):
            module = model.get_submodule(a.path)
            types = getattr(getattr(module, "config", None), "layer_types", None) or ()
            type_ = types[layer.index] if layer.index < len(types) else None
            kind = (type(module), type_, a.num_heads, a.num_kv_heads, a.head_dim, a.value_dim)
            kinds.setdefault(kind, []).append(layer)
    if tower.name != "text" and len(kinds) > 1:
        # What only the last layer is may have no effect: many models take an earlier layer's output, or its keys.
        kinds = {kind: layers for kind, layers in kinds.items() if layers != [tower.layers[-1]]}
    return kinds


def _judge_kind(case: Case, tower: Tower, layers: list[Layer]) -> Verdict:
    """The verdict on the first of these layers on which the outputs depend: some models drop the last vision layer."""
    verdicts = []
    for layer in layers:
        verdicts.append(_judge_layer(case, tower, layer))
        if verdicts[-1].effect >= EFFECT:
            return verdicts[-1]
    return max(verdicts, key=lambda verdict: verdict.effect)


def _judge_layer(case: Case, tower: Tower, layer: Layer) -> Verdict:
    attention = layer.attention
    assert attention is not None
    assert attention.num_heads is not None
    head = attention.num_heads // 2
    with without_head(case.model, attention, head):
        edited = _run(case.model, case.inputs)
    zero = steer.Intervention(sites.head_out([layer.index], [head], tower.name), ops.Scale(0.0))
    with steer.attach(case.model, zero, model_map=case.map):
        steered = _run(case.model, case.inputs)
    after = _run(case.model, case.inputs)
    same = len(after) == len(case.plain) and all(map(torch.equal, after, case.plain))
    where = f"{tower.name} layer {layer.index} head {head} of {attention.num_heads}"
    return Verdict(where, _distance(steered, edited), _distance(edited, case.plain), same)


@contextmanager
def without_head(model: nn.Module, attention: Attention, head: int) -> Iterator[None]:
    """The independent truth: a weight of the output projection in which that head's columns are zero.

    The module gets a weight of its own for that, since some towers share theirs with another.
    """
    assert attention.out_proj is not None, f"{attention.path} has no output projection"
    assert attention.value_dim is not None
    module = model.get_submodule(attention.out_proj)
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    edited = weight.detach().clone()
    span = slice(head * attention.value_dim, (head + 1) * attention.value_dim)
    # transformers' Conv1D keeps (in, out), the transpose of a linear layer.
    (edited[span] if type(module).__name__ == "Conv1D" else edited[:, span]).zero_()
    module.weight = nn.Parameter(edited, requires_grad=False)
    try:
        yield
    finally:
        module.weight = weight


def _run(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """The results: logits, similarities and embeddings where the output has any, else every floating tensor."""
    torch.manual_seed(0)
    with torch.no_grad():
        return _tensors(model(**inputs))


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        results = [name for name in output if name.startswith("logits") or name.endswith("_embeds")]
        rest = [name for name in output if name not in results and "past_key_values" not in name]
        return [tensor for name in (results or rest) for tensor in _tensors(output[name])]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in _tensors(value)]
    return []


def _distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    if [x.shape for x in a] != [y.shape for y in b] or not a:
        return float("inf")
    return max(
        float((x - y).abs().max() / y.abs().max().clamp_min(1.0)) for x, y in zip(a, b, strict=True) if y.numel()
    )
