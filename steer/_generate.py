"""One wrapper around a model's `generate`, for everything that wants to stand around it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass
class Turn:
    """One call of `generate` as somebody wants it: its arguments, what to do when it is over, and what it returns."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leave: Callable[[], None] = lambda: None
    result: Callable[[Any], Any] = lambda made: made


Around = Callable[[tuple[Any, ...], dict[str, Any]], Turn]


class _Wrapper:
    """The wrapper on one model, on the instance, for as long as anybody stands around its `generate`."""

    def __init__(self, model: nn.Module) -> None:
        self.around: list[Around] = []
        self._own: Callable[..., Any] | None = model.__dict__.get("generate")
        original: Callable[..., Any] = model.generate  # type: ignore[assignment]

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            turns: list[Turn] = []
            try:
                for one in self.around:
                    turns.append(one(args, kwargs))
                    args, kwargs = turns[-1].args, turns[-1].kwargs
                made = original(*args, **kwargs)
            finally:
                for turn in turns:
                    turn.leave()
            for turn in reversed(turns):
                made = turn.result(made)
            return made

        model.__dict__["generate"] = generate

    def remove(self, model: nn.Module) -> None:
        if self._own is None:
            model.__dict__.pop("generate", None)
        else:
            model.__dict__["generate"] = self._own


_wrappers: weakref.WeakKeyDictionary[nn.Module, _Wrapper] = weakref.WeakKeyDictionary()


def around_generate(model: nn.Module, one: Around, first: bool = False) -> Callable[[], None]:
    """Stand around every call of `model.generate`; what is returned takes it back.

    Args:
        model: does nothing for one without `generate`.
        one: sees the arguments and may change them, and the result.
        first: before everyone who is there, so that they see the changed arguments.
    """
    if not hasattr(model, "generate"):
        return lambda: None
    wrapper = _wrappers.get(model)
    if wrapper is None:
        wrapper = _wrappers[model] = _Wrapper(model)
    wrapper.around.insert(0 if first else len(wrapper.around), one)

    def remove() -> None:
        kept = _wrappers[model]
        kept.around.remove(one)
        if not kept.around:
            kept.remove(model)
            del _wrappers[model]

    return remove
