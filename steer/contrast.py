"""A second reading of the same words in step with the model's own, and what is made of both readings' logits.

The other stream holds the same tokens in the same slots; what it sees of them differs: pictures changed
(`with_pictures`) or hidden (`without_images`). It has a cache of its own that is reordered, cropped and repeated
whenever the model's is, so that beams and guesses work. Everything else attached to the model acts in both streams,
but for steps on the logits, which are given what was made of both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ._frame import Frame
from .errors import InterventionError

__all__ = ["Contrast", "aside", "with_pictures", "without_images"]

Arguments = dict[str, Any]
Other = Callable[[torch.nn.Module, Arguments, Frame], Arguments]

_aside: ContextVar[bool] = ContextVar("steer_aside", default=False)


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
        pixels = {name: value for name, value in given.items() if holds_pixels(name) and value is not None}
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
    changed = {name: value for name, value in given.items() if not holds_pixels(name)}
    changed["attention_mask"] = seen
    if "position_ids" in inspect.signature(model.forward).parameters:
        positions = (seen.cumsum(-1) - 1).clamp_min(0)[:, frame.offset :]
        before = given.get("position_ids")
        if isinstance(before, torch.Tensor) and before.ndim == 3:
            # several rows of positions (time, height, width) agree at words
            positions = positions.expand(before.shape[0], *positions.shape)
        changed["position_ids"] = positions
    return changed


def holds_pixels(name: str) -> bool:
    """Whether an argument of that name is what a processor made of pictures."""
    return name.startswith("pixel_values")
