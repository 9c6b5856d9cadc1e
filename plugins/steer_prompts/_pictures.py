"""The training pictures as the image half takes them: plain ones kept, perturbed ones made anew in each step."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from steer import SteerError, TwoStream
from steer.data import flip, opened, rand_augment, random_resized_crop

from ._encode import parts

KEPT_BYTES = 2**29
BATCH = 32


def listed(images: Any) -> list[Any]:
    """Pictures as a list.

    Raises:
        SteerError: one picture by itself, which has to stand in a list as well, or no pictures at all.
    """
    alone = isinstance(images, str | bytes | os.PathLike | Mapping) or not isinstance(images, Iterable)
    if alone or getattr(images, "ndim", 4) < 4:
        raise SteerError(f"pictures are given as a list, such as [picture]; got one {type(images).__name__}")
    return list(images)


class Pictures:
    """Pictures by number.

    Attributes:
        plain: pictures are not perturbed, so that what is made of one can be kept.
        step: the number of the running step, from which perturbations are drawn.
    """

    def __init__(self, stream: TwoStream, images: Sequence[Any], augment: str, seed: int) -> None:
        self.stream, self.images, self.augment, self.seed = stream, images, augment, seed
        self.plain = augment == "none"
        self.step = 0
        self._pixels: dict[str, torch.Tensor] | None = None
        self._features: torch.Tensor | None = None
        self._few: bool | None = None

    def at(self, step: int) -> None:
        """Go to a step."""
        self.step = step

    def pixels(self, numbers: Sequence[int], view: int = 0) -> dict[str, torch.Tensor]:
        """What the image half takes for some pictures; each `view` of a step is perturbed in its own way."""
        if not self.plain:
            return self.stream.pixels([self._perturbed(number, view) for number in numbers])
        if self._pixels is None and self._fits():
            made = [self.stream.pixels(part) for part in parts(self.images, BATCH)]
            self._pixels = {name: torch.cat([one[name] for one in made]) for name in made[0]}
        if self._pixels is None:
            return self.stream.pixels([self.images[number] for number in numbers])
        rows = torch.tensor(list(numbers), device=self.stream.device)
        return {name: value[rows] for name, value in self._pixels.items()}

    @torch.no_grad()
    def features(self, numbers: Sequence[int], view: int = 0) -> torch.Tensor:
        """Features by the model as it is, (B, D); call it with nothing attached, or where nothing changes them."""
        if not self.plain:
            return self.stream.image_features(self.pixels(numbers, view))
        if self._features is None:
            self._features = self.all()
        return self._features[torch.tensor(list(numbers), device=self.stream.device)]

    @torch.no_grad()
    def all(self) -> torch.Tensor:
        """Features of every picture as it is, (N, D)."""
        made = [self.stream.image_features(self.stream.pixels(part)) for part in parts(self.images, BATCH)]
        return torch.cat(made)

    def _fits(self) -> bool:
        if self._few is None:
            one = self.stream.pixels(self.images[:1])
            size = sum(value.numel() * value.element_size() for value in one.values())
            self._few = size * len(self.images) <= KEPT_BYTES
        return self._few

    def _perturbed(self, number: int, view: int) -> Any:
        rng = random.Random(f"{self.seed} {self.step} {number} {view}")
        image = opened(self.images[number])
        if self.augment == "rand":
            return rand_augment(image, rng)
        return flip(random_resized_crop(image, rng), rng)
