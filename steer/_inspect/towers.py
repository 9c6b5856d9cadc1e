"""Give each stack its tower: what it reads (tokens, patches, sound) and which one writes the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .stacks import Block, Stack

_SEES = ("patch_size", "image_size", "num_channels", "in_channels", "spatial_merge_size")
_HEARS = ("num_mel_bins", "mel_bins", "n_mels", "audio_channels", "feature_size")


@dataclass
class Group:
    """Blocks that make one tower, and the path of the module that holds them."""

    kind: str
    path: str
    blocks: list[Block]


def group_stacks(model: nn.Module, stacks: list[Stack]) -> list[Group]:
    """Towers in the order text, vision, audio, text_encoder, connector."""
    kinds = [_reads(model, stack, stacks) for stack in stacks]
    writer = _writer(model, stacks, kinds)
    named = []
    for position, (stack, kind) in enumerate(zip(stacks, kinds)):
        crosses = kind in ("tokens", None) and position != writer
        name = "text" if position == writer else {"tokens": "text_encoder", None: "connector"}.get(kind, kind)
        named.append(Group(name, stack.path, stack.blocks))
    order = ["text", "vision", "audio", "text_encoder", "connector"]
    return sorted(_merge(model, named), key=lambda group: order.index(group.kind))


def _ancestors(path: str) -> Iterator[str]:
    """The paths that hold `path`, nearest first, the model itself ('') last."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _reads(model: nn.Module, stack: Stack, stacks: list[Stack]) -> str | None:
    """`tokens`, `vision` or `audio`: from the nearest config, else from what embeds the input; None for neither."""
    for path in _ancestors(stack.path):
        owner = model.get_submodule(path) if path else model
        others = [other.path for other in stacks if other is not stack and _holds(path, other.path)]
        config = getattr(owner, "config", None)
        seen = _reads_config(config) if config is not None else None
        if seen is None and not others:
            seen = _reads_modules(owner, path, stacks)
        if seen is not None or (others and config is not None):
            return seen
    return None


def _holds(path: str, other: str) -> bool:
    return not path or other == path or other.startswith(f"{path}.")


def _reads_config(config: Any) -> str | None:
    nested = getattr(config, "sub_configs", None)
    if not nested and any(getattr(config, name, None) is not None for name in _HEARS):
        return "audio"
    if not nested and any(getattr(config, name, None) is not None for name in _SEES):
        return "vision"
    return "tokens" if getattr(config, "vocab_size", None) else None


def _outside_stacks(owner: nn.Module, path: str, stacks: list[Stack]) -> Iterator[nn.Module]:
    held = {id(block.module) for stack in stacks for block in stack.blocks}
    waiting = [owner]
    while waiting:
        module = waiting.pop()
        if id(module) not in held:
            yield module
            waiting.extend(module.children())


def _reads_modules(owner: nn.Module, path: str, stacks: list[Stack]) -> str | None:
    modules = list(_outside_stacks(owner, path, stacks))
    if any(isinstance(module, (nn.Conv2d, nn.Conv3d)) for module in modules):
        return "vision"
    if any(isinstance(module, nn.Conv1d) for module in modules):
        return "audio"
    return "tokens" if any(isinstance(module, nn.Embedding) for module in modules) else None


def _writer(model: nn.Module, stacks: list[Stack], kinds: list[str | None]) -> int | None:
    """The stack that writes the tokens, or, in a model of two streams, the one that reads them."""
    readers = [position for position, kind in enumerate(kinds) if kind == "tokens"]
    if not readers:
        return None
    decoder = _part(model, "get_decoder")
    names = {id(module): name for name, module in model.named_modules()}
    path = names.get(id(decoder), "") if decoder is not None else ""
    inside = [position for position in readers if path and _holds(path, stacks[position].path)]
    return max(inside or readers, key=lambda position: (_cross(stacks[position]), len(stacks[position].blocks)))


def _cross(stack: Stack) -> int:
    return max(len(block.softmax) for block in stack.blocks)


def _part(model: nn.Module, getter: str) -> nn.Module | None:
    try:
        return getattr(model, getter)()
    except Exception:  # models answer with whatever error they like when they have no such part
        return None


def _merge(model: nn.Module, groups: list[Group]) -> list[Group]:
    """Stacks of one kind and width that share a holder with nothing else in it are one tower."""
    merged: list[Group] = []
    for group in groups:
        partner = next((other for other in merged if _one_tower(model, other, group, groups)), None)
        if partner is None:
            merged.append(group)
        else:
            merged[merged.index(partner)] = Group(group.kind, _common(partner.path, group.path), _in_order(partner, group))
    return merged


def _one_tower(model: nn.Module, one: Group, other: Group, groups: list[Group]) -> bool:
    if one.kind != other.kind or _size(one.blocks[0]) != _size(other.blocks[0]):
        return False
    holder = _common(one.path, other.path)
    if any(_holds(holder, group.path) and group.kind != one.kind for group in groups):
        return False
    return bool(holder) and not any(hasattr(model.get_submodule(part), "config") for part in _between(holder, one, other))


def _between(holder: str, *groups: Group) -> list[str]:
    """Modules below the common holder that hold one of the stacks and could be towers of their own."""
    found = []
    for group in groups:
        inner = [path for path in _ancestors(group.path) if path != holder and _holds(holder, path)]
        found += inner
    return found


def _common(one: str, other: str) -> str:
    parts = []
    for left, right in zip(one.split("."), other.split(".")):
        if left != right:
            break
        parts.append(left)
    return ".".join(parts)


def _size(block: Block) -> int:
    return max((parameter.shape[0] for parameter in block.module.parameters() if parameter.dim() == 1), default=0)


def _in_order(one: Group, other: Group) -> list[Block]:
    return one.blocks + other.blocks
