"""What sessions do in two-stream models only: their features, rows that a tower gains, the model's own call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ._step import Tally
from .errors import MappingError
from .model_map import Layer, ModelMap, Streams, Tower
from .ops import Around
from .sites import Site

MASKS = ("attention_mask", "mask")


def streams_of(model_map: ModelMap, why: str = "") -> Streams:
    """How the model scores pictures against texts.

    Args:
        model_map: the model's map.
        why: what is known of why it has none, for the error.

    Raises:
        MappingError: it does not, or it could not be found out how.
    """
    if model_map.streams is None:
        raise MappingError(
            f"{model_map.model_class} is not mapped as a model that scores pictures against texts (such as CLIP)"
            + (f": {why}" if why else "")
        )
    return model_map.streams


def place(site: Site, model_map: ModelMap) -> tuple[str, str | None]:
    """The module behind `token_embeddings` or `features`, and the field of its output."""
    streams = streams_of(model_map)
    if site.name == "token_embeddings":
        return streams.tokens, None
    feature = streams.image if model_map.tower(site.tower).kind == "vision" else streams.text
    return feature.path, feature.field


def width(site: Site, model_map: ModelMap, tower: Tower) -> int | None:
    """The last dimension at a site that belongs to no layer, where it is known."""
    if site.name == "embeddings":
        return tower.width
    if site.name == "token_embeddings":
        return None
    streams = streams_of(model_map)
    return streams.text.width


def growing(model_map: ModelMap, tower: Tower) -> tuple[Layer, ...]:
    """The layers of a tower that may be given more rows.

    Raises:
        MappingError: rows have no meaning in it.
    """
    blind = [layer.path for layer in tower.layers if layer.attention is None or layer.attention.kind != "softmax"]
    parents = {layer.path.rpartition(".")[0] for layer in tower.layers}
    what = f"the {tower.name} tower of {model_map.model_class}"
    if tower.kind in ("text", "text_encoder"):
        raise MappingError(f"{what} reads words: rows are added to towers that see a picture whole; write them instead")
    if blind:
        raise MappingError(
            f"{what} has layers without attention ({blind[0]}, {len(blind)} of {len(tower.layers)}): "
            "prompts that stand beside the patches have no meaning there"
        )
    if len(parents) > 1:
        raise MappingError(
            f"{what} has stages ({', '.join(sorted(parents)[:3])}) that regroup its rows; none can be added"
        )
    if tower.embeddings is None:
        raise MappingError(f"{what} has no one module that makes its first rows; none can be added")
    return tower.layers


def widen(layer: nn.Module) -> Any:
    """Before a layer runs, let its mask show the rows that were added behind those it was made for."""
    names = list(inspect.signature(layer.forward).parameters)
    known = [name for name in names if name in MASKS] or list(MASKS)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs[names[0]]
        for name in known:
            at = names.index(name) if name in names else len(args)
            given = args[at] if at < len(args) else kwargs.get(name)
            if not isinstance(given, torch.Tensor):
                continue
            wide = _wider(given, hidden.shape[1])
            if at < len(args):
                return (*args[:at], wide, *args[at + 1 :]), kwargs
            return args, {**kwargs, name: wide}
        return None

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _wider(mask: torch.Tensor, length: int) -> torch.Tensor:
    """A mask (B, S), (B, 1, 1, S) or (B, 1, T, S) for `length` rows; the new ones see what the first one sees."""
    more = length - mask.shape[-1]
    if more <= 0:
        return mask
    square = mask.ndim > 2 and mask.shape[-2] == mask.shape[-1]
    seen = 0 if mask.ndim > 2 and mask.is_floating_point() else 1
    mask = torch.cat([mask, mask.new_full((*mask.shape[:-1], more), seen)], dim=-1)
    if square:
        mask = torch.cat([mask, mask[..., :1, :].expand(*mask.shape[:-2], more, length)], dim=-2)
    return mask


def around(model: nn.Module, op: Around, tally: Tally) -> Any:
    """Both functions of an `Around` on a model."""
    names = list(inspect.signature(model.forward).parameters)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tally.count(1)
        return (), op.before(module, {**dict(zip(names, args, strict=False)), **kwargs})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return op.after(module, output)

    return _Both(model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after))


class _Both:
    """Two handles as one."""

    def __init__(self, *handles: Any) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
