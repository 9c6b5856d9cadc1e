"""From an attention module, or another token mixer, to model_map's Attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model_map import Attention, Projection
from .features import pattern_of
from .ghost import Call
from .modules import RECURRENT, linear_sizes, settings, uses_registry
from .probe import Probe, probe
from .stacks import Block


class Mixers:
    """Reads mixers, each build of module once: a 90-layer model takes a few probes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.probes: dict[Any, Probe | None] = {}
        self.shared: dict[Any, Any] = {}
        self.notes: list[str] = []

    def softmax(self, path: str, states: tuple[str, ...], block: Block) -> tuple[Attention, bool]:
        """The attention at `path`, and whether its keys come from another tower alone."""
        module = self.model.get_submodule(path)
        if isinstance(module, nn.MultiheadAttention):
            return _multihead(path, module), False
        key = (_build_of(module), states)
        if key not in self.probes:
            self.probes[key] = self._probe(module, states)
        found = self.probes[key]
        outer = self.model.get_submodule(path.rpartition(".")[0])
        if found is None:
            self.notes.append(f"attention whose forward could not be traced: {path}")
            return Attention("softmax", path, registry=uses_registry(module)), bool(states)
        return _from_probe(path, module, outer, block, found), _is_cross(found, states)

    def _probe(self, module: nn.Module, states: tuple[str, ...]) -> Probe | None:
        found = probe(module, states, self.shared)
        return probe(module, (), self.shared) if found is None and states else found

    def other(self, path: str, kind: str) -> Attention:
        """A mixer without softmax; sizes where its structure tells them."""
        module = self.model.get_submodule(path)
        names = [name for name, child in module.named_modules() if linear_sizes(child)]
        sizes = {name: linear_sizes(module.get_submodule(name)) for name in names}
        out = _last_out(sizes, module)
        heads = _recurrent_heads(module)
        value = sizes[out][0] // heads if out and heads else None  # type: ignore[index]
        own = settings(module)
        key = next((own[name] for name in ("head_k_dim", "head_dim", "ssm_state_size") if name in own), None)
        return Attention(
            kind=kind,  # type: ignore[arg-type]
            path=path,
            num_heads=heads,
            head_dim=key if heads else None,
            value_dim=value,
            out_proj=f"{path}.{out}" if out else None,
        )


def _build_of(module: nn.Module) -> Any:
    """What two modules share when one probe stands for both."""
    parts = tuple((name, type(child), linear_sizes(child)) for name, child in module.named_modules())
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters(recurse=False))
    own = {key: value for key, value in settings(module).items() if "idx" not in key and "index" not in key}
    flags = {key: value for key, value in vars(module).items() if isinstance(value, (bool, str))}
    return parts, shapes, tuple(sorted(own.items())), tuple(sorted(flags.items()))


def _is_cross(found: Probe, states: tuple[str, ...]) -> bool:
    keys = found.calls[0].sources[1]
    return bool(states) and "states" in keys and "own" not in keys


def _multihead(path: str, module: nn.MultiheadAttention) -> Attention:
    heads, width = module.num_heads, module.head_dim
    return Attention("softmax", path, heads, heads, width, width, f"{path}.out_proj")  # q, k, v never leave a module


def _from_probe(path: str, module: nn.Module, outer: nn.Module, block: Block, found: Probe) -> Attention:
    call, out_proj = _choose(path, module, outer, block, found)
    heads, kv_heads, head_dim, value_dim = sizes_of(call)
    leaves = linear_sizes(block_module(block, out_proj))[0] if out_proj else heads * value_dim  # type: ignore[index]
    if heads * value_dim != leaves == heads * call.v[-2]:  # attention over channels: its "tokens" are the features
        return Attention("softmax", path, heads, kv_heads, None, call.v[-2], out_proj, call.registry)
    projections = [
        _projection(path, module, call, index, count, width)
        for index, count, width in ((0, heads, head_dim), (1, kv_heads, head_dim), (2, kv_heads, value_dim))
    ]
    return Attention("softmax", path, heads, kv_heads, head_dim, value_dim, out_proj, call.registry, *projections)


def block_module(block: Block, path: str) -> nn.Module:
    """The module at `path`, which lies in the block."""
    return block.module.get_submodule(path[len(block.path) :].strip("."))


def sizes_of(call: Call) -> tuple[int, int, int, int]:
    """(query heads, KV heads, q and k width, v width) of one call."""
    return call.q[-3], call.k[-3], call.q[-1], call.v[-1]


def _choose(path: str, module: nn.Module, outer: nn.Module, block: Block, found: Probe) -> tuple[Call, str | None]:
    """The call whose result fits an output projection, and that projection's path."""
    calls = sorted(found.calls, key=lambda call: not call.registry)
    for call in calls:
        enters = call.q[-3] * call.v[-1]
        inside = [f"{path}.{name}" for name in found.after if linear_sizes(module.get_submodule(name))[0] == enters]  # type: ignore[index]
        if inside:
            return call, inside[0]
    for call in calls:
        out = _outside(path, outer, block, call.q[-3] * call.v[-1])
        if out is not None:
            return call, out
    for call in calls:
        enters = call.q[-3] * call.v[-2]
        inside = [f"{path}.{name}" for name in found.after if linear_sizes(module.get_submodule(name))[0] == enters]  # type: ignore[index]
        if inside:
            return call, inside[0]
    return calls[0], None


def _outside(path: str, outer: nn.Module, block: Block, enters: int) -> str | None:
    """An output projection that is a sibling of the attention module, in a wrapper around both.

    The block is no such wrapper: what takes as many features beside the attention there may as well be its MLP.
    """
    base, _, name = path.rpartition(".")
    if not base.startswith(f"{block.path}."):
        return None
    for inner, child in outer.named_modules():
        sizes = linear_sizes(child)
        if sizes and sizes[0] == enters and not f"{inner}.".startswith(f"{name}."):
            return f"{base}.{inner}"
    return None


def _projection(path: str, module: nn.Module, call: Call, index: int, heads: int, width: int) -> Projection | None:
    """The linear layer that makes q, k or v, where it is one layer; a layer shared with others is fused."""
    names = [name for name in call.sources[index] if name not in ("own", "states", "attended", "probabilities")]
    if len(names) != 1 or names[0] not in dict(module.named_modules()):
        return None  # several layers, or one of another module, whose keys this one shares
    sizes = linear_sizes(module.get_submodule(names[0]))
    if sizes is None or sizes[1] == heads * width:
        return Projection(f"{path}.{names[0]}") if sizes else None
    numbered = call.features[index]
    fused = pattern_of(numbered, heads, width, sizes[1]) if numbered is not None else None
    return Projection(f"{path}.{names[0]}", *fused) if fused else None


def _last_out(sizes: dict[str, Any], module: nn.Module) -> str | None:
    """The projection that leads back to the width that came in: no other layer takes what it gives."""
    ins = {size[0] for size in sizes.values()}
    outs = {size[1] for size in sizes.values()}
    widths = [size[0] for size in sizes.values() if size[0] in outs]
    names = [name for name, size in sizes.items() if size[1] in widths and ("out" in name or name.startswith("o"))]
    names = names or [name for name, size in sizes.items() if size[1] in ins & set(widths)]
    return names[-1] if names else None


def _recurrent_heads(module: nn.Module) -> int | None:
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in RECURRENT and parameter.dim() == 1 and "A" in name:
            return parameter.numel()
    return None
