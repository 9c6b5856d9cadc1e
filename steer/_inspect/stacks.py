"""Find the stacks of blocks in a model, and the token mixers in each block."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from .modules import attends, is_depthwise, is_list, is_plain, linear_sizes, recurrence
from .towers import by_config, by_modality


@dataclass
class Block:
    """One block before it is read: its module and the paths of its mixers, softmax and other."""

    path: str
    module: nn.Module
    softmax: list[str] = field(default_factory=list)
    other: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Stack:
    """Blocks in the order in which they stand in the model, and the path of what holds them."""

    path: str
    blocks: list[Block]


def find_stacks(model: nn.Module) -> list[Stack]:
    """Every list of repeated blocks that mix tokens, and the lists of a tower that only mixes channels."""
    found: list[Stack] = []
    _search(model, "", found)
    for path, module in model.named_modules():
        if path and _is_bare_tower(module) and not any(_touch(path, stack.path) for stack in found):
            lists = [(name, child) for name, child in module.named_children() if is_list(child) and len(child) > 1]
            for name, child in lists[:1]:
                below = f"{path}.{name}"
                found.append(Stack(below, [Block(f"{below}.{key}", block) for key, block in child.named_children()]))
    return found


def loose_mixers(model: nn.Module, stacks: list[Stack]) -> list[str]:
    """Attention that belongs to no layer, such as a pooling head."""
    held = [block.path for stack in stacks for block in stack.blocks]
    holders = {path[:end] for path in held for end in range(len(path)) if path[end] == "."} | {""}
    whole = Block("", model)
    for holder in sorted(holders):
        for name, child in model.get_submodule(holder).named_children():
            path = f"{holder}.{name}" if holder else name
            if path not in holders and path not in held:
                _mixers(child, path, whole)
    return whole.softmax


def _is_bare_tower(module: nn.Module) -> bool:
    """A part of a model that takes pictures or sound in by itself, by the word of its class or of its own config."""
    if is_list(module) or not any(is_list(child) and len(list(child.children())) > 1 for child in module.children()):
        return False
    return (by_modality(module) or by_config(module)) in ("vision", "audio")


def _touch(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _search(module: nn.Module, path: str, found: list[Stack]) -> None:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if is_list(child):
            blocks = [block for key, element in child.named_children() for block in _blocks(element, f"{below}.{key}")]
            if any(block.softmax or block.other for block in blocks):
                found.append(Stack(below, blocks))
                continue
        _search(child, below, found)


def _blocks(element: nn.Module, path: str) -> list[Block]:
    """The blocks in one element of a list: itself, or those of the stage that it is."""
    for name, child in element.named_modules():
        inner = list(child.named_children()) if is_list(child) and child is not element else []
        if any(_is_block(grandchild) for _, grandchild in inner):
            base = f"{path}.{name}"
            return [block for key, grandchild in inner for block in _blocks(grandchild, f"{base}.{key}")]
    if is_list(element):
        children = list(element.named_children())
        if children and all(_is_block(child) for _, child in children):
            return [block for key, child in children for block in _blocks(child, f"{path}.{key}")]
    for name, child in element.named_children():
        mixers = dict(child.named_children()) if is_list(child) else {}
        if len(mixers) > 1 and all(attends(inner) for inner in mixers.values()):
            below = f"{path}.{name}"
            return [Block(f"{below}.{key}", inner, [f"{below}.{key}"]) for key, inner in mixers.items()]
    halves = [(name, child) for name, child in element.named_children() if _is_block(child)]
    if len(halves) > 1:
        return [block for name, child in halves for block in _blocks(child, f"{path}.{name}")]
    block = Block(path, element)
    _mixers(element, path, block)
    return [block]


def _is_block(module: nn.Module) -> bool:
    """Whether a module holds both a mixer and, outside it, a layer that widens: what a block of a tower holds."""
    found = Block("", module)
    _mixers(module, "", found)
    mixers = found.softmax + [path for path, _ in found.other]
    if not mixers:
        return False
    outside = [
        sizes
        for name, child in module.named_modules()
        if (sizes := linear_sizes(child)) and not any(f".{name}".startswith(mixer) for mixer in mixers)
    ]
    return len(outside) >= 2


def _mixers(module: nn.Module, path: str, block: Block) -> None:
    """Collect the outermost mixers at and below `module`."""
    if linear_sizes(module) is not None or is_plain(module):
        return
    if not is_list(module) and attends(module):
        block.softmax.append(path)
        return
    kind = None if is_list(module) else recurrence(module)
    if kind in ("ssm", "linear"):
        block.other.append((path, kind))
        return
    if kind == "conv" and _only_convolves(module):
        inner = next(name for name, child in module.named_children() if is_depthwise(child))
        block.other.append((f"{path}.{inner}" if module is block.module else path, kind))
        return
    for name, child in module.named_children():
        _mixers(child, f"{path}.{name}", block)


def _only_convolves(module: nn.Module) -> bool:
    """A convolution that is the mixer, and not a position code beside one."""
    return not any(attends(child) for child in module.modules() if child is not module)
