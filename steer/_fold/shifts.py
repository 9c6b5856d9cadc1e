"""From interventions to constant vectors behind branches, or the reason why one is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .._address import Target, resolve
from .._params import Slot
from ..errors import InterventionError
from ..intervention import Intervention
from ..model_map import Layer, ModelMap
from ..ops import Add

SITES = ("head_out", "attn_out", "mlp_out", "resid_out", "resid_in")


@dataclass(frozen=True)
class Shift:
    """A constant that one intervention adds in one layer.

    Attributes:
        label: the intervention, as the report calls it.
        where: the address in words.
        vector: what is added, fp64: (D,), or (H, d_v) before the output projection, zero for heads not chosen.
        branches: paths of the modules to whose output it may be added, the first that has a bias is taken; for
            `head_out` the output projection.
        before: whether the vector is added to the input instead.
    """

    label: str
    where: str
    vector: torch.Tensor
    branches: tuple[str, ...]
    before: bool


def read(interventions: Sequence[Intervention], labels: Sequence[str], model_map: ModelMap) -> list[Shift]:
    """Every shift, by intervention and layer.

    Raises:
        InterventionError: one is no constant shift at every position; the message names it and says why.
    """
    found = []
    for item, label in zip(interventions, labels, strict=True):
        why = _reason(item)
        if why is not None:
            raise refusal(label, why)
        found += [_shift(item, label, target) for target in resolve(item.site, model_map)]
    return found


def refusal(label: str, why: str) -> InterventionError:
    """The error of an intervention that cannot be folded."""
    return InterventionError(
        f"{label!r} cannot be folded into a bias: {why}. Only ops.Add without a gate, at every position, at "
        f"{', '.join(SITES)} can; serve the rest with steer.attach"
    )


def _reason(item: Intervention) -> str | None:
    op, site = item.op, item.site
    if not isinstance(op, Add):
        return f"ops.{type(op).__name__} is not the addition of a constant"
    if item.gate is not None:
        return f"its strength depends on the token (gates.{type(item.gate).__name__})"
    if op.keep_norm or op.relative:
        return f"{'keep_norm' if op.keep_norm else 'relative'}=True makes it depend on the token's length"
    if site.positions is not None and site.positions.kind != "all":
        return f"it acts at some positions only (positions.{site.positions.kind}), and a bias at all of them"
    if site.name not in SITES:
        return f"no bias of a layer acts at {site.name!r}"
    return None


def _shift(item: Intervention, label: str, target: Target) -> Shift:
    site, layer = item.site, target.layer
    where = f"{site.name} of {target.tower.name} layer {layer.index}"
    if site.name == "head_out":
        mixer = target.attention
        assert mixer is not None
        assert mixer.out_proj is not None
        return Shift(label, where, _by_head(item, target, where), (mixer.out_proj,), True)
    vector = _vector(item, Slot(where, target.place, target.count, None, None))
    if site.name == "resid_in":
        if layer.index == 0:
            raise refusal(label, "nothing with a bias stands before the first layer; use resid_out of a layer")
        layer = target.tower.layers[layer.index - 1]
    branches = _branches(item, layer)
    if not branches:
        raise refusal(label, f"the map has no such branch at {where}")
    return Shift(label, where, vector, branches, False)


def _branches(item: Intervention, layer: Layer) -> tuple[str, ...]:
    name = item.site.name
    # In a layer without an MLP, a state-space block say, the mixer's branch is the last one.
    if name == "attn_out" or (name != "mlp_out" and layer.mlp_out is None and layer.mlp is None):
        cross = item.site.attention == "cross"
        mixer, branch = (layer.cross_attention, layer.cross_attn_out) if cross else (layer.attention, layer.attn_out)
        last = branch or (mixer.path if mixer is not None else None)
    else:
        last = layer.mlp_out or layer.mlp
    # A layer that ends in a norm gives that norm's output; elsewhere what the last branch adds is as good.
    wanted = [last] if name in ("attn_out", "mlp_out") else [layer.path, last]
    return tuple(path for path in wanted if path is not None)


def _by_head(item: Intervention, target: Target, where: str) -> torch.Tensor:
    mixer = target.attention
    assert mixer is not None
    assert mixer.num_heads is not None
    heads = list(range(mixer.num_heads) if target.heads is None else target.heads)
    chosen = _vector(item, Slot(where, target.place, target.count, len(heads), mixer.value_dim))
    every = chosen.new_zeros(mixer.num_heads, chosen.shape[-1])
    every[heads] = chosen.expand(len(heads), -1)
    return every


def _vector(item: Intervention, slot: Slot) -> torch.Tensor:
    op = item.op
    assert isinstance(op, Add)
    vector, scale = slot.take("vector", op.vector, 1, slot.width), slot.take("scale", op.scale, 0)
    return (vector.detach().double().cpu() * scale.detach().double().cpu().unsqueeze(-1)).contiguous()
