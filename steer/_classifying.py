"""What `steer eval` measures of labelled pictures: hand-written prompts by the model alone, and methods beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import normalize

from ._accuracy import Row
from .errors import SteerError
from .examples import Example
from .two_stream import TwoStream

TEMPLATE = "a photo of a {}."
_TEXTS = 128


class Chances(Protocol):
    """Classes with the probabilities of each for some pictures, fp32 (B, K)."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def probabilities(self) -> torch.Tensor: ...


class Classifier(Protocol):
    """What names the class of a picture, among classes that can be changed."""

    classes: list[str]

    def set_classes(self, classes: Sequence[str]) -> Any: ...

    def predict(self, images: Sequence[Any], *, batch_size: int = 32) -> Chances: ...


class _Found(NamedTuple):
    classes: tuple[str, ...]
    probabilities: torch.Tensor


class HandWritten:
    """The model alone with hand-written prompts: the baseline of whatever learns.

    Attributes:
        templates: prompts with a `{}` for the name of a class; the features of several are averaged, each of length 1.
        classes: between which it decides.
    """

    def __init__(self, stream: TwoStream, templates: Sequence[str] = (TEMPLATE,)) -> None:
        for one in templates:
            if one.count("{}") != 1:
                raise SteerError(f"a template needs one {{}} for the name of the class, got {one!r}")
        self.stream, self.templates = stream, tuple(templates)
        self.classes: list[str] = []
        self._texts = torch.zeros(0)

    @torch.no_grad()
    def set_classes(self, classes: Sequence[str]) -> None:
        """Decide between these classes from now on.

        Raises:
            SteerError: a prompt is longer than the model can read; the message has it.
        """
        whole = [self._read([one.replace("{}", name.replace("_", " ")) for name in classes]) for one in self.templates]
        self._texts, self.classes = torch.stack(whole).mean(0), list(classes)

    @torch.no_grad()
    def predict(self, images: Sequence[Any], *, batch_size: int = 32) -> _Found:
        """The probabilities of all classes, fp32 (B, K) on the CPU."""
        made = [
            self.stream.scores(self.stream.image_features(self.stream.pixels(images[i : i + batch_size])), self._texts)
            for i in range(0, len(images), batch_size)
        ]
        return _Found(tuple(self.classes), torch.cat(made).softmax(-1).float().cpu())

    def _read(self, texts: list[str]) -> torch.Tensor:
        parts = [texts[i : i + _TEXTS] for i in range(0, len(texts), _TEXTS)]
        return torch.cat(
            [normalize(self.stream.text_features(self.stream.tokens(part)).float(), dim=-1) for part in parts]
        )


def measure(
    name: str, way: Classifier, examples: Sequence[Example], classes: Sequence[str], batch_size: int = 32
) -> Row:
    """Let one way name the class of every picture.

    Args:
        name: of the row.
        way: as `steer eval` runs it: bound to the model, if it is a method.
        examples: labelled, all of `classes`.
        classes: between which it decides.
        batch_size: pictures in one forward, and in memory.

    Raises:
        SteerError: it cannot decide between these classes; or a picture cannot be read.
    """
    take(way, classes)
    places = {one: place for place, one in enumerate(way.classes)}
    answers = torch.tensor([places[one.answer] for one in examples])
    # The first call of all allocates, and reads the texts.
    way.predict([examples[0].images[0]], batch_size=batch_size)
    start = time.perf_counter()
    made = [
        way.predict([one.images[0] for one in examples[i : i + batch_size]], batch_size=batch_size).probabilities
        for i in range(0, len(examples), batch_size)
    ]
    ms = 1000 * (time.perf_counter() - start) / len(examples)
    return Row(name, tuple(way.classes), torch.cat(made), answers, ms)


def take(way: Classifier, classes: Sequence[str]) -> None:
    """Let it decide between these classes; its own order stays where they are the same.

    Raises:
        SteerError: it learned something of its own for each class, and not for these.
    """
    if set(way.classes) != set(classes):
        way.set_classes(list(classes))
