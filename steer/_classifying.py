"""What `steer eval` measures of labelled pictures: hand-written prompts by the model alone, and methods beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import normalize

from ._accuracy import Named, Row
from ._content import weights_digest
from ._kept import Kept, way_digest
from ._together import Asking
from .errors import SteerError
from .examples import Example
from .method import Method
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
    name: str,
    way: Classifier,
    examples: Sequence[Example],
    classes: Sequence[str],
    batch_size: int = 32,
    *,
    keys: Sequence[str] | None = None,
    model: Any = None,
    answers: Path | None = None,
) -> Row:
    """Let one way name the class of every picture.

    Args:
        name: of the row.
        way: as `steer eval` runs it: bound to the model, if it is a method.
        examples: labelled, all of `classes`.
        classes: between which it decides.
        batch_size: pictures in one forward, and in memory.
        keys: by which answers are kept; the places of the examples if not given.
        model: that is asked; the processes that were launched, all of which call this, share the pictures then.
        answers: with a model, the folder where answers are kept as they come.

    Raises:
        SteerError: it cannot decide between these classes; a picture cannot be read; what is kept is of another run.
    """
    take(way, classes)
    asked = [str(place) for place in range(len(examples))] if keys is None else list(keys)

    def batch(places: Sequence[int]) -> list[Named]:
        start = time.perf_counter()
        chances = way.predict([examples[i].images[0] for i in places], batch_size=batch_size).probabilities
        ms = 1000 * (time.perf_counter() - start) / len(places)
        best = chances.max(-1)
        found = zip(places, best.indices.tolist(), best.values.tolist(), strict=True)
        return [Named(asked[i], way.classes[place], chance, ms) for i, place, chance in found]

    kept: Kept[Named] | None = None
    if answers is not None:
        questions = dict(zip(asked, examples, strict=True))
        kept = Kept(answers, Named, questions, weights_digest(model), _digest(way), name)
    asking = Asking(asked, batch, batch_size, name, kept, progress=model is not None)
    said = asking.answers(model, shared=model is not None)
    return Row(name, tuple(way.classes), said, [one.answer for one in examples])


def _digest(way: Classifier) -> str:
    method = way if isinstance(way, Method) else None
    return way_digest(method, kind="labelled", classes=list(way.classes), templates=list(getattr(way, "templates", ())))


def take(way: Classifier, classes: Sequence[str]) -> None:
    """Let it decide between these classes; its own order stays where they are the same.

    Raises:
        SteerError: it learned something of its own for each class, and not for these.
    """
    if set(way.classes) != set(classes):
        way.set_classes(list(classes))
