"""Give each stack its tower: what it reads (tokens, patches, sound) and which one writes the tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from torch import nn

from ..model_map import Layer
from .modules import CONVS, linear_sizes

_SEES = re.compile(r"patch|^image_size|^num_channels|^in_channels|^in_chans")
_HEARS = re.compile(r"^(num_)?mel_bins|^n_mels|^num_mel|audio_channels|^feature_size$|^sampling_rate$")
_ORDER = ["text", "vision", "audio", "text_encoder", "connector"]


@dataclass(frozen=True)
class Group:
    """Layers that make one tower, what they are, and the path of the module that holds them."""

    kind: str
    path: str
    width: int
    layers: tuple[Layer, ...]


def name_groups(model: nn.Module, groups: list[Group]) -> list[Group]:
    """The same groups with their kinds, merged where two lists make one tower; text first."""
    paths = [group.path for group in groups]
    reads = [_reads(model, path, paths) for path in paths]
    writer = _writer(model, groups, reads)
    text = groups[writer] if writer is not None else None
    named = [
        replace(group, kind=_kind(model, group, text, read, paths)) for group, read in zip(groups, reads, strict=True)
    ]
    if writer is not None:
        named = _interleave(named, named[writer])
    if text is not None:  # before any other decoder
        named.sort(key=lambda group: group.path != text.path)
    return sorted(_merge(named), key=lambda group: _ORDER.index(group.kind))


def _kind(model: nn.Module, group: Group, text: Group | None, reads: str | None, paths: list[str]) -> str:
    """The kind of one stack, when `text` is the one that writes the tokens."""
    if group is text:
        return "text"
    if reads in ("vision", "audio"):
        return "connector" if _queries(model, group, paths) else reads
    if text is not None and _is_second_decoder(model, group, text):
        return "text"
    crosses = any(layer.cross_attention is not None for layer in group.layers)
    return "text_encoder" if reads == "tokens" and not crosses and _embeds(model, group.path, paths) else "connector"


def _is_second_decoder(model: nn.Module, group: Group, text: Group) -> bool:
    """Whether a stack has the text tower's very blocks, though the model is no encoder-decoder: an expert beside it."""
    one, other = (type(model.get_submodule(layers[0].path)) for layers in (group.layers, text.layers))
    return one is other and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _queries(model: nn.Module, group: Group, paths: list[str]) -> bool:
    """Whether a stack starts from learned queries, and nothing beside it brings pixels or sound to its width."""
    for _, owner, alone in _owners(model, group.path, paths):
        if not alone:
            return False
        if any(_brings(module, group.width) for module in _beside_stacks(owner)):
            return False
        if any(parameter.shape[-1:] == (group.width,) for parameter in owner.parameters(recurse=False)):
            return True
    return False


def _brings(module: nn.Module, width: int) -> bool:
    sizes = linear_sizes(module)
    widens = sizes is not None and sizes[0] != width and sizes[1] == width
    return widens or isinstance(module, (nn.Embedding, *CONVS))


def _ancestors(path: str) -> Iterator[str]:
    """The paths that hold `path`, nearest first, the model itself ('') last."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _holds(path: str, other: str) -> bool:
    return not path or other == path or other.startswith(f"{path}.")


def _owners(model: nn.Module, path: str, paths: list[str]) -> Iterator[tuple[str, nn.Module, bool]]:
    """What holds a stack, nearest first: path, module, and whether it holds no other stack."""
    for above in _ancestors(path):
        alone = not any(other != path and _holds(above, other) for other in paths)
        yield above, model.get_submodule(above), alone


def _reads(model: nn.Module, path: str, paths: list[str]) -> str | None:
    """`tokens`, `vision` or `audio`, by what the nearest holder says of itself, else by what embeds its input."""
    for _, owner, alone in _owners(model, path, paths):
        if owner is model and not alone:
            break
        says = "tokens" if alone and _embeds_vocabulary(owner) else by_modality(owner) if alone else None
        says = says or by_config(owner)
        if says is not None:
            return says
        if alone and (seen := _by_modules(owner, paths)) is not None:
            return seen
    beside = model.get_submodule(path.rpartition(".")[0]).children()
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    return "tokens" if vocabulary or any(isinstance(child, nn.Embedding) for child in beside) else None


def _embeds_vocabulary(owner: nn.Module) -> bool:
    vocabulary = getattr(getattr(owner, "config", None), "vocab_size", None) or 0
    return vocabulary > 0 and any(
        isinstance(module, nn.Embedding) and module.num_embeddings >= vocabulary for module in _beside_stacks(owner)
    )


def by_modality(owner: nn.Module) -> str | None:
    """The word of transformers for what a module takes in."""
    modalities = getattr(type(owner), "input_modalities", None)
    named = {modalities} if isinstance(modalities, str) else set(modalities or ())
    if named and named <= {"image", "video"}:
        return "vision"
    first = getattr(type(owner), "main_input_name", "")
    return "audio" if named == {"audio"} or first in ("input_features", "input_values") else None


def by_config(owner: nn.Module) -> str | None:
    config = getattr(owner, "config", None)
    if config is None or getattr(config, "sub_configs", None):
        return None
    names = [key for key, value in vars(config).items() if value is not None]
    vocabulary = getattr(config, "vocab_size", None)
    if _embeds_vocabulary(owner):
        return "tokens"
    if any(_HEARS.search(name) for name in names):
        return "audio"
    if any(_SEES.search(name) for name in names):
        return None if vocabulary and getattr(config, "is_encoder_decoder", False) else "vision"
    return "tokens" if vocabulary else None


def _beside_stacks(owner: nn.Module) -> Iterator[nn.Module]:
    """Modules of a holder outside its lists of blocks."""
    waiting = [owner]
    while waiting:
        module = waiting.pop()
        yield module
        waiting.extend(child for child in module.children() if not isinstance(child, nn.ModuleList))


def _by_modules(owner: nn.Module, paths: list[str]) -> str | None:
    modules = list(_beside_stacks(owner))
    if any(isinstance(module, (nn.Conv2d, nn.Conv3d)) for module in modules):
        return "vision"
    if any(isinstance(module, nn.Conv1d) for module in modules):
        return "audio"
    return "tokens" if any(isinstance(module, nn.Embedding) for module in modules) else None


def _embeds(model: nn.Module, path: str, paths: list[str]) -> bool:
    """Whether a holder of this stack alone embeds tokens."""
    return any(
        isinstance(module, nn.Embedding)
        for _, owner, alone in _owners(model, path, paths)
        if alone
        for module in _beside_stacks(owner)
    )


def _writer(model: nn.Module, groups: list[Group], reads: list[str | None]) -> int | None:
    """The stack that writes the tokens, or, in a model of two streams, the one that reads them."""
    paths = [group.path for group in groups]
    readers = [position for position, kind in enumerate(reads) if kind == "tokens"]
    if not readers:
        return None
    decoder = _decoder_path(model)
    inside = [position for position in readers if decoder and _holds(decoder, paths[position])]
    embedding = [position for position in readers if _embeds(model, paths[position], paths)]
    feeding = [position for position in inside or readers if _stands_by_input(model, paths[position])]

    def rank(position: int) -> tuple[bool, int]:
        layers = groups[position].layers
        both = any(layer.attention is not None and layer.cross_attention is not None for layer in layers)
        return both and bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)), len(layers)

    return max(feeding or inside or embedding or readers, key=rank)


def _stands_by_input(model: nn.Module, path: str) -> bool:
    """Whether the model's own token embeddings lie beside this list of blocks."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except Exception:  # models answer with whatever error they like when they have none
        return False
    holder = model.get_submodule(path.rpartition(".")[0])
    return any(child is table for child in holder.children())


def _decoder_path(model: nn.Module) -> str:
    try:
        decoder = model.get_decoder()  # type: ignore[operator]
    except Exception:  # models answer with whatever error they like when they have no such part
        return ""
    return next((name for name, module in model.named_modules() if module is decoder), "")


def _interleave(groups: list[Group], text: Group) -> list[Group]:
    """Cross-attention blocks in a list beside the decoder's run between its blocks: one tower, in running order."""
    holder = text.path.rpartition(".")[0]
    for group in groups:
        only_cross = all(layer.attention is None and layer.cross_attention is not None for layer in group.layers)
        if group is text or not only_cross or group.path.rpartition(".")[0] != holder:
            continue
        every = max(1, len(text.layers) // len(group.layers))
        runs = [text.layers[start : start + every] for start in range(0, len(text.layers), every)]
        pairs = zip_longest(group.layers, runs, fillvalue=())
        layers = [layer for cross, run in pairs for layer in ([cross] if isinstance(cross, Layer) else []) + list(run)]
        merged = replace(text, path=holder, layers=tuple(layers))
        return [merged if other is text else other for other in groups if other is not group]
    return groups


def _merge(groups: list[Group]) -> list[Group]:
    """Stacks of one kind and width whose common holder holds nothing of another kind are one tower."""
    merged: list[Group] = []
    for group in groups:
        for position, other in enumerate(merged):
            holder = _common(other.path, group.path)
            strangers = any(_holds(holder, third.path) and third.kind != group.kind for third in groups)
            if holder and not strangers and (other.kind, other.width) == (group.kind, group.width):
                merged[position] = replace(other, path=holder, layers=other.layers + group.layers)
                break
        else:
            merged.append(group)
    return merged


def _common(one: str, other: str) -> str:
    parts = []
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        parts.append(left)
    return ".".join(parts)
