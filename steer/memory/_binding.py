"""A memory on its model: `past_key_values=memory` in `generate` and in a plain forward."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._caches import CACHES
from .._generate import Turn, around_generate
from ..errors import InterventionError
from ._asking import check_padding, placed, question_of
from ._helping import masks_of

if TYPE_CHECKING:
    from .memory import Memory


def bind(memory: Memory, model: nn.Module) -> Callable[[], None]:
    """Install what a memory needs on its model; what is returned takes it back. Holds neither of them alive."""
    from ..session import map_of

    held: Callable[[], Memory | None] = weakref.ref(memory)
    helper = masks_of(model)
    helper.begin(model, map_of(model))
    names = list(inspect.signature(model.forward).parameters)
    options = list(inspect.signature(model.generate).parameters) if hasattr(model, "generate") else []  # type: ignore[arg-type]

    def around(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Turn:
        own = held()
        if own is None or not any(kwargs.get(name) is own for name in CACHES):
            return Turn(args, kwargs)
        kwargs = dict(zip(options, args, strict=False)) | kwargs
        ids = kwargs.pop("inputs", None)
        if ids is not None:
            kwargs["input_ids"] = ids
        question, before = question_of(own, kwargs)
        check_padding(own, question, _asked(model, kwargs, "max_new_tokens"))
        made = placed(model, own, question, generating=True)
        if _asked(model, kwargs, "assistant_model") or _asked(model, kwargs, "prompt_lookup_num_tokens"):
            _no_padding(made["attention_mask"])
        made["past_key_values"] = own.cache(made["input_ids"].shape[0] * _copies(model, kwargs), model)
        unset = {name: None for name, value in kwargs.items() if value is None}
        return Turn((), {**unset, **_shorter(made, before)}, result=lambda out: _whole(out, before))

    def before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        own = held()
        if own is None or not any(given.get(name) is own for name in CACHES):
            return None
        question, _ = question_of(own, given)
        check_padding(own, question)
        made = placed(model, own, question, generating=False)
        made["past_key_values"] = own.cache(made["input_ids"].shape[0], model)
        return (), made

    undo = [
        around_generate(model, around, first=True),
        model.register_forward_pre_hook(before_forward, with_kwargs=True, prepend=True).remove,
        helper.end,
    ]
    return _Release(undo)


class _Release:
    """Takes everything back once, however often it is called."""

    def __init__(self, undo: list[Callable[[], None]]) -> None:
        self._undo = undo

    def __call__(self) -> None:
        while self._undo:
            self._undo.pop()()


def _asked(model: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """What `generate` takes for an option: the call's, its configuration's, or the model's."""
    sources = (kwargs.get("generation_config"), getattr(model, "generation_config", None))
    found = (kwargs.get(name), *(getattr(source, name, None) for source in sources))
    return next((value for value in found if value is not None), None)


def _copies(model: Any, kwargs: Mapping[str, Any]) -> int:
    """How many rows `generate` makes of each: beams or samples."""
    return max(_asked(model, kwargs, name) or 1 for name in ("num_beams", "num_return_sequences"))


def _no_padding(mask: torch.Tensor) -> None:
    if not bool(mask.bool().all()):
        raise InterventionError(
            "guesses (an assistant model, prompt lookup) after a memory need a question and a memory without padding: "
            "transformers cuts a mask that is longer than the question"
        )


def _shorter(kwargs: dict[str, Any], before: torch.Tensor | None) -> dict[str, Any]:
    """Lengths were meant for the whole sequence, and `generate` sees what is left of it."""
    if before is None:
        return kwargs
    taken = {n: kwargs[n] - before.shape[1] for n in ("max_length", "min_length") if kwargs.get(n) is not None}
    return {**kwargs, **{name: max(length, 0) for name, length in taken.items()}}


def _whole(out: Any, before: torch.Tensor | None) -> Any:
    """What `generate` returned, with the tokens in front that were taken off."""
    if before is None:
        return out
    sequences = out if isinstance(out, torch.Tensor) else out.sequences
    front = before.repeat_interleave(sequences.shape[0] // before.shape[0], dim=0)
    sequences = torch.cat([front.to(sequences.device), sequences], dim=1)
    if isinstance(out, torch.Tensor):
        return sequences
    out["sequences"] = sequences
    return out


def unbound(name: str) -> InterventionError:
    """What to say where a memory is used as a cache on a model that does not know it."""
    return InterventionError(
        f"{name}: this memory is not on the model that was called; use memory.bind(model) first, or give "
        "past_key_values=memory.cache() inside `with steer.memory.masks(model):`"
    )
