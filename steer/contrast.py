"""A second reading of the same words in step with the model's own, and what is made of both readings' logits.

The other stream holds the same tokens in the same slots; what it sees of them differs: pictures changed
(`with_pictures`) or hidden (`without_images`). It has a cache of its own that is reordered, cropped and repeated
whenever the model's is, so that beams and guesses work. Everything else attached to the model acts in both streams.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ._frame import Frame
from ._generate import Turn
from .errors import InterventionError

__all__ = ["Contrast", "aside", "with_pictures", "without_images"]

Arguments = dict[str, Any]
Other = Callable[[torch.nn.Module, Arguments, Frame], Arguments]

_aside: ContextVar[bool] = ContextVar("steer_aside", default=False)
_CACHE, _ENCODED = "past_key_values", "mm_encoder_outputs"
_MOVES = ("reorder_cache", "crop", "batch_repeat_interleave", "batch_select_indices", "reset")


def aside() -> bool:
    """Whether the running forward is the other stream of a `Contrast`."""
    return _aside.get()


@dataclass(frozen=True, eq=False)
class Contrast:
    """An op at `call`: run the other stream after the model and combine their logits.

    Attributes:
        other: (model, its arguments by name, the forward's `Frame`) -> the other stream's arguments; the cache is seen
            to. The frame says which rows are images, if `images` is true.
        combine: (logits, other logits) -> logits, all (B, T, V).
        images: `other` asks the frame where images are.
        hides: `other` hides tokens from attention; refused where layers carry a state past such tokens.

    Raises:
        InterventionError: in a forward, if the cache went on where the other stream could not follow.
    """

    other: Other
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    images: bool = False
    hides: bool = False
    sites: ClassVar[tuple[str, ...]] = ("call",)


def with_pictures(change: Callable[[torch.Tensor], torch.Tensor]) -> Other:
    """A stream that is shown other pictures.

    Args:
        change: takes each tensor of pixels as the processor made it (normalised, in the model's own layout) and returns
            one of the same shape.
    """

    def other(model: torch.nn.Module, given: Arguments, frame: Frame) -> Arguments:
        pixels = {name: value for name, value in given.items() if _holds_pixels(name) and value is not None}
        encoded = given.get("encoder_outputs") is not None
        if not pixels and encoded and not frame.offset:
            raise InterventionError(
                f"{type(model).__name__} is given what its encoder made of the pictures, not the pictures; the other "
                "stream cannot be shown others here"
            )
        return {**given, **{name: change(value) for name, value in pixels.items()}}

    return other


def without_images(model: torch.nn.Module, given: Arguments, frame: Frame) -> Arguments:
    """A stream that sees no image token: hidden from attention, and the words close the gap in their positions."""
    whole = frame.of_keys()
    hidden = whole.image_rows()
    seen = torch.ones_like(hidden, dtype=torch.long)
    if frame.padding is not None:
        seen = frame.padding[:, : whole.length].to(hidden.device).long()
    seen = seen * ~hidden
    changed = {name: value for name, value in given.items() if not _holds_pixels(name)}
    changed["attention_mask"] = seen
    if "position_ids" in inspect.signature(model.forward).parameters:
        positions = (seen.cumsum(-1) - 1).clamp_min(0)[:, frame.offset :]
        before = given.get("position_ids")
        if isinstance(before, torch.Tensor) and before.ndim == 3:
            # several rows of positions (time, height, width) agree at words
            positions = positions.expand(before.shape[0], *positions.shape)
        changed["position_ids"] = positions
    return changed


def _named(args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
    return {**kwargs, "input_ids": ids}


def _holds_pixels(name: str) -> bool:
    return name.startswith("pixel_values")


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
        pixels = {name: value for name, value in self._given.items() if _holds_pixels(name) and value is not None}
        return {**given, **pixels}

    def encoded(self, model: Any, changed: Arguments) -> Arguments:
        """The other stream's arguments, its pictures encoded as `generate` has it done, for every beam."""
        if not self._was_encoded:
            return changed
        bare = {name: value for name, value in changed.items() if not _holds_pixels(name) and name != _ENCODED}
        pixels = {name: value for name, value in changed.items() if _holds_pixels(name)}
        if not pixels:
            return bare
        given = {name: value for name, value in self._given.items() if name != _ENCODED}
        features = model._prepare_multimodal_encoder_kwargs_for_generation({**given, **pixels})[_ENCODED]
        ids = self._given["input_ids"]
        beams = changed["input_ids"].shape[0] // ids.shape[0]
        if beams > 1:
            features = model._expand_multimodal_outputs(ids, features, expand_size=beams)
        return {**bare, _ENCODED: features}


class Running:
    """A `Contrast` on one model for the length of a session."""

    def __init__(
        self, op: Contrast, model: torch.nn.Module, frame: Callable[[torch.Tensor], Frame], done: Callable[[], None]
    ) -> None:
        self._op, self._frame, self._done = op, frame, done
        self._names = list(inspect.signature(model.forward).parameters)
        self._name = f"_steer_other_{id(self)}"
        self._given: Arguments | None = None
        self._cache: Any = None
        self._prompt = Prompt({})

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
        self._cache = self._follower(self._given.get(_CACHE))

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
            changed[_CACHE] = cache
        with _set_aside():
            second = model(**changed)
        made, other = getattr(output, _CACHE, None), getattr(second, _CACHE, None)
        if cache is None and made is not None and other is not None:
            self._link(made, other)
        output["logits"] = self._op.combine(logits, second.logits)
        self._done()
        return output

    def _follower(self, cache: Any) -> Any:
        """The other stream's cache beside this one; a copy, where this one is new here."""
        if cache is None:
            return None
        other = getattr(cache, self._name, None)
        if other is None:
            other = _copied(cache)
            self._link(cache, other)
        elif _length(other) != _length(cache):
            raise InterventionError(
                f"this cache holds {_length(cache)} tokens and the other stream's {_length(other)}: it went on outside "
                "the session; start with a new cache"
            )
        return other

    def _link(self, cache: Any, other: Any) -> None:
        """Move the other cache whenever this one is moved."""
        setattr(cache, self._name, other)
        for name in _MOVES:
            move = getattr(cache, name, None)
            if move is not None:
                setattr(cache, name, _both(move, getattr(other, name)))


def _copied(cache: Any) -> Any:
    """A copy that moves alone."""
    other = copy.copy(cache)
    for name in [n for n in vars(other) if n in _MOVES or n.startswith("_steer_other_")]:
        delattr(other, name)
    return copy.deepcopy(other)


def _both(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    def move(*args: Any, **kwargs: Any) -> Any:
        second(*args, **kwargs)
        return first(*args, **kwargs)

    return move


def _length(cache: Any) -> int:
    return int(cache.get_seq_length())


@contextmanager
def _set_aside() -> Iterator[None]:
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)
