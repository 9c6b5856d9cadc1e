"""A ModelMap as a compact tree for the terminal."""

from __future__ import annotations

from itertools import groupby

from .model_map import Attention, Layer, ModelMap, Tower


def tree(model_map: ModelMap) -> str:
    """Towers with runs of equal layers on one line each."""
    size = model_map.num_parameters
    lines = [f"{model_map.model_class} ({model_map.model_type}, {_count(size)} parameters)"]
    towers = list(model_map.towers.values())
    for position, tower in enumerate(towers):
        last = position == len(towers) - 1 and not model_map.notes
        lines.append(
            f"{'└─' if last else '├─'} {tower.name}: {tower.path}, {len(tower.layers)} layers, width {tower.width}"
        )
        lines += [f"{'  ' if last else '│ '}   {line}" for line in _runs(tower)]
    lines += [f"note: {note}" for note in model_map.notes]
    return "\n".join(lines)


def _count(size: int) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return str(size)


def _runs(tower: Tower) -> list[str]:
    lines = []
    for text, group in groupby(tower.layers, key=_describe):
        run = list(group)
        span = f"layer {run[0].index}" if len(run) == 1 else f"layers {run[0].index}-{run[-1].index}"
        lines.append(f"{span}: {text}")
    return lines


def _describe(layer: Layer) -> str:
    parts = []
    if layer.attention is not None:
        parts.append(_mixer(layer.attention))
    if layer.cross_attention is not None:
        parts.append(f"cross {_mixer(layer.cross_attention)}")
    if layer.mlp is not None:
        parts.append(layer.mlp[len(layer.path) :].strip("."))
    return " + ".join(parts) or "no mixer"


def _mixer(attention: Attention) -> str:
    if attention.num_heads is None:
        return attention.kind
    kv = f" ({attention.num_kv_heads} kv)" if attention.num_kv_heads not in (None, attention.num_heads) else ""
    width = (
        f"{attention.head_dim}"
        if attention.head_dim == attention.value_dim
        else f"{attention.head_dim}/{attention.value_dim}"
    )
    hand = "" if attention.registry or attention.kind != "softmax" else ", hooks only"
    return f"{attention.kind} {attention.num_heads} heads{kv} x {width}{hand}"
