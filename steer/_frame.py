"""Where a forward stands in its sequence: the facts that positions are resolved against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from .errors import MappingError

NONE: Final = "none"
"""The resolved choice that holds no row of this forward."""

Rows = torch.Tensor | slice | str | None
"""Resolved rows of one forward: None for all, NONE, a slice, or a bool mask (B, T)."""


@dataclass
class Frame:
    """One forward of one tower.

    Attributes:
        batch, length: B and T of this forward.
        device: where masks are made.
        offset: how many slots of the sequence came before (the cache's logical length).
        prompt_length: how many slots the prompt has, padding included.
        padding: the 2-D attention mask (B, offset + T or more), 1 at real tokens, or None when nothing is padded; on
            any device, and sliced only where somebody asks.
        image: bool (B, offset + T), true at image tokens, or a function that raises because none can be told.
        chosen: rows resolved in this forward, by who asked. They live here so that they go when the frame goes.
    """

    batch: int
    length: int
    device: torch.device
    offset: int = 0
    prompt_length: int = 0
    padding: torch.Tensor | None = None
    image: torch.Tensor | Callable[[], torch.Tensor] | None = None
    chosen: dict[Any, Rows] = field(default_factory=dict)

    def absolute(self) -> torch.Tensor | None:
        """Absolute positions (B, T), -1 at padding; None when slot and position agree."""
        if self.padding is None:
            return None
        real = self.padding[:, : self.offset + self.length].to(self.device).bool()
        positions = torch.where(real, real.long().cumsum(-1) - 1, -1)
        return positions[:, self.offset : self.offset + self.length]

    def last_prompt_slot(self) -> int | torch.Tensor:
        """The slot of the last real prompt token: one number, or one per row (B,) where padding may be on the right."""
        if self.padding is None:
            return self.prompt_length - 1
        real = self.padding[:, : self.prompt_length].to(self.device).bool()
        slots = torch.arange(real.shape[1], device=real.device)
        return torch.where(real, slots, -1).amax(-1)

    def image_rows(self) -> torch.Tensor:
        """Bool (B, T), true at image tokens.

        Raises:
            MappingError: the model's input does not say where images are.
        """
        if self.image is None:
            return no_images()
        whole = self.image if isinstance(self.image, torch.Tensor) else self.image()
        return whole[:, self.offset : self.offset + self.length]

    def of_keys(self) -> Frame:
        """The frame of everything seen so far, whose rows are the keys."""
        return Frame(
            self.batch, self.offset + self.length, self.device, 0, self.prompt_length, self.padding, self.image
        )


def no_images() -> torch.Tensor:
    """Stand in for image rows where the input does not tell them: raises."""
    raise MappingError(
        "image positions are not known here: the forward got neither `mm_token_type_ids` nor `input_ids` with the "
        "image token's id; use positions.span, positions.index or positions.mask"
    )
