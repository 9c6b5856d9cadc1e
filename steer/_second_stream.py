"""The other stream of a `Contrast` at work: its arguments, its pictures, its cache."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from ._caches import cache_name, cache_of
from ._frame import Frame
from ._generate import Turn
from .contrast import Arguments, Contrast, _aside, aside, holds_pixels
from .errors import InterventionError

_ENCODED = "mm_encoder_outputs"
_MOVES = ("reorder_cache", "crop", "batch_repeat_interleave", "batch_select_indices", "reset")
_OTHERS = "_steer_others"


class Running:
    """A `Contrast` on one model for the length of a session."""

    def __init__(
        self, op: Contrast, model: torch.nn.Module, frame: Callable[[torch.Tensor], Frame], done: Callable[[], None]
    ) -> None:
        self._op, self._frame, self._done = op, frame, done
        self._names = list(inspect.signature(model.forward).parameters)
        self._given: Arguments | None = None
        self._cache: Any = None
        self._prompt = Prompt({})
        self._followers = Followers()

    def around(self, args: tuple[Any, ...], kwargs: Arguments) -> Turn:
        """Know for the length of a call of `generate` what it was given."""
        before, self._prompt = self._prompt, Prompt(_named(args, kwargs))

        def leave() -> None:
            self._prompt = before

        return Turn(args, kwargs, leave)

    def before(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        """Keep the arguments, and the cache as it is before the model goes on with it."""
        if aside():
            return
        self._given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        self._cache = self._followers.of(cache_of(self._given))

    def after(self, model: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Run the other stream and put the combined logits in the output's place."""
        if aside() or self._given is None:
            return None
        given, self._given = self._given, None
        cache, self._cache = self._cache, None
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise InterventionError(f"{type(model).__name__} returned no `logits`; call it with return_dict=True")
        changed = self._prompt.encoded(model, self._op.other(model, self._prompt.shown(given), self._frame(logits)))
        if cache is not None:
            changed[cache_name(given) or "past_key_values"] = cache
        with _set_aside():
            second = model(**changed)
        made, other = cache_of(output), cache_of(second)
        if cache is None and made is not None and other is not None:
            self._followers.link(made, other)
        output["logits"] = self._op.combine(logits, second.logits)
        self._done()
        return output

    def remove(self) -> None:
        """Let go of every cache."""
        self._followers.clear()


class Prompt:
    """What a call of `generate` was given: it may have the pictures encoded before the model is called."""

    def __init__(self, given: Arguments) -> None:
        self._given = given
        self._was_encoded = False

    def shown(self, given: Arguments) -> Arguments:
        """A forward's arguments, with the pictures themselves where they came encoded."""
        self._was_encoded = bool(given.get(_ENCODED))
        if not self._was_encoded:
            return given
        pixels = {name: value for name, value in self._given.items() if holds_pixels(name) and value is not None}
        return {**given, **pixels}

    def encoded(self, model: Any, changed: Arguments) -> Arguments:
        """The other stream's arguments, its pictures encoded as `generate` has it done, for every beam."""
        if not self._was_encoded:
            return changed
        bare = {name: value for name, value in changed.items() if not holds_pixels(name) and name != _ENCODED}
        pixels = {name: value for name, value in changed.items() if holds_pixels(name)}
        if not pixels:
            return bare
        given = {name: value for name, value in self._given.items() if name != _ENCODED}
        features = model._prepare_multimodal_encoder_kwargs_for_generation({**given, **pixels})[_ENCODED]
        ids = self._given["input_ids"]
        beams = changed["input_ids"].shape[0] // ids.shape[0]
        if beams > 1:
            features = model._expand_multimodal_outputs(ids, features, expand_size=beams)
        return {**bare, _ENCODED: features}


class Followers:
    """The caches of one other stream, each moved whenever the model's cache is that it goes beside."""

    def __init__(self) -> None:
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()

    def of(self, cache: Any) -> Any:
        """The cache beside this one; a copy, where this one is new here; None for None.

        Raises:
            InterventionError: this one went on without the other.
        """
        if cache is None:
            return None
        other = vars(cache).get(_OTHERS, {}).get(id(self))
        if other is None:
            other = _copied(cache)
            self.link(cache, other)
        elif _length(other) != _length(cache):
            raise InterventionError(
                f"this cache holds {_length(cache)} tokens and the other stream's {_length(other)}: it went on outside "
                "the session; start with a new cache"
            )
        return other

    def link(self, cache: Any, other: Any) -> None:
        """Move the other cache whenever this one is moved."""
        if _OTHERS not in vars(cache):
            setattr(cache, _OTHERS, {})
            cache.__class__ = _led(type(cache))  # type: ignore[arg-type]
        getattr(cache, _OTHERS)[id(self)] = other
        self._caches.add(cache)

    def clear(self) -> None:
        """Leave every cache as it would be without us."""
        for cache in self._caches:
            others = getattr(cache, _OTHERS)
            del others[id(self)]
            if not others:
                _alone(cache)
        self._caches.clear()


@lru_cache
def _led(kind: type) -> type:
    """A class of caches with others beside them. A class and not a function on the cache, so that copies move alone."""

    def moved(name: str) -> Callable[..., Any]:
        def move(self: Any, *args: Any, **kwargs: Any) -> Any:
            for other in getattr(self, _OTHERS).values():
                getattr(other, name)(*args, **kwargs)
            return getattr(kind, name)(self, *args, **kwargs)

        return move

    return type(kind.__name__, (kind,), {name: moved(name) for name in _MOVES if hasattr(kind, name)})


def _alone(cache: Any) -> None:
    if vars(cache).pop(_OTHERS, None) is not None:
        cache.__class__ = type(cache).__bases__[0]


def _copied(cache: Any) -> Any:
    """A copy that moves alone."""
    other = copy.copy(cache)
    _alone(other)
    return copy.deepcopy(other)


def _length(cache: Any) -> int:
    return int(cache.get_seq_length())


def _named(args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
    return {**kwargs, "input_ids": ids}


@contextmanager
def _set_aside() -> Iterator[None]:
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)
