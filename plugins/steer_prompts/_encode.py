"""Running the two halves: texts in parts, each picture's own texts, and the scores of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from steer import SteerError, TwoStream
from steer.training import frozen

from . import _parts
from ._parts import Turn
from ._prompts import from_template, words_of

if TYPE_CHECKING:
    from .learner import PromptLearner

CLASS_BATCH = 128


def names(classes: Sequence[str]) -> list[str]:
    """Class names, checked: each a word or more, none twice.

    Raises:
        SteerError: something else.
    """
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise SteerError(f"classes must be a list of names, got {classes!r:.80}")
    made = list(classes)
    wrong = [name for name in made if not isinstance(name, str) or not words_of(name)]
    if wrong:
        raise SteerError(f"classes must be a list of names, got one that is {wrong[0]!r:.80}")
    twice = sorted(name for name, count in Counter(made).items() if count > 1)
    if twice:
        raise SteerError(f"classes names {', '.join(map(repr, twice[:5]))} more than once")
    return made


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Slices of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def at_least_one(name: str, value: Any) -> None:
    """Raise if a count is none.

    Raises:
        SteerError: it is not a whole number of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SteerError(f"{name} must be a whole number of at least 1, got {value!r}")


def quiet(model: torch.nn.Module) -> AbstractContextManager[None]:
    """Nothing is dropped out inside; costs next to nothing where nothing would be."""
    return frozen(model) if any(module.training for module in model.modules()) else nullcontext()


@contextmanager
def halves(turn: Turn) -> Iterator[None]:
    """Inside, the two halves are run one by one."""
    before, turn.halves = turn.halves, True
    try:
        yield
    finally:
        turn.halves = before
        turn.classes = turn.shifts = None
        turn.features.clear()


@dataclass(frozen=True)
class Kept:
    """Features of the classes' prompts, and what they were made from.

    Attributes:
        features: (K, D).
        configuration: the method's fields.
        tensors: each with the number of changes that torch has counted; one that was made under inference mode counts
            none.
    """

    features: torch.Tensor
    configuration: str
    tensors: Mapping[str, tuple[torch.Tensor, int]]

    @classmethod
    def of(cls, method: PromptLearner, features: torch.Tensor) -> Kept:
        """Features that were made just now."""
        return cls(features, repr(method), {name: (value, _changes(value)) for name, value in method.tensors.items()})

    def holds(self, method: PromptLearner) -> bool:
        """Whether they would be the same again."""
        if self.configuration != repr(method) or self.tensors.keys() != method.tensors.keys():
            return False
        pairs = ((method.tensors[name], *kept) for name, kept in self.tensors.items())
        return all(now is then and _changes(now) == count for now, then, count in pairs)


def _changes(value: torch.Tensor) -> int:
    return 0 if value.is_inference() else value._version


def texts(method: PromptLearner, turn: Turn, class_batch: int = CLASS_BATCH) -> torch.Tensor:
    """The features of the classes' prompts, (K, D)."""
    return _rows(method, turn, torch.arange(len(method.classes)), None, class_batch)


def texts_for(
    method: PromptLearner, turn: Turn, features: torch.Tensor, class_batch: int = CLASS_BATCH
) -> torch.Tensor:
    """The features of the classes' prompts for each picture, (B, K, D), from the pictures' features (B, D)."""
    count = len(method.classes)
    shifts = _parts.meta(method.tensors, features).repeat_interleave(count, 0)
    made = _rows(method, turn, torch.arange(count).repeat(len(features)), shifts, class_batch)
    return made.unflatten(0, (len(features), count))


def scores(
    method: PromptLearner,
    turn: Turn,
    features: torch.Tensor,
    known: torch.Tensor | None,
    class_batch: int = CLASS_BATCH,
) -> torch.Tensor:
    """The scores (B, K) of pictures' features (B, D); `known` are the texts' where they are the same for all."""
    if known is None:
        known = texts_for(method, turn, features, class_batch)
    made = method.bound().scores(features, known)
    return made + _parts.cached(method, features) if method.cache and turn.voting else made


def by_hand(method: PromptLearner, stream: TwoStream, unit: bool = True) -> torch.Tensor:
    """The mean over the templates of the classes' features, by the model as it is, (K, D).

    Args:
        method: has templates and classes.
        stream: the model, with nothing attached.
        unit: normalise each before the mean, as CLIP does; PromptSRC does not.
    """
    total: torch.Tensor | float = 0.0
    for template in method.templates:
        given = from_template(stream, method.classes, template).inputs
        made = plain_texts(stream, given)
        total = total + (normalize(made, dim=-1) if unit else made)
    assert isinstance(total, torch.Tensor)
    return total / len(method.templates)


@torch.no_grad()
def plain_texts(stream: TwoStream, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Features of texts by the model as it is, (K, D) in fp32 at least."""
    count = next(iter(given.values())).shape[0]
    made = [
        _parts.wide(stream.text_features({name: value[start : start + CLASS_BATCH] for name, value in given.items()}))
        for start in range(0, count, CLASS_BATCH)
    ]
    return torch.cat(made)


def _rows(
    method: PromptLearner, turn: Turn, classes: torch.Tensor, shifts: torch.Tensor | None, size: int
) -> torch.Tensor:
    """The features of some rows of text, read in parts; with gradients, a part's insides are computed again."""
    stream, given = method.bound(), method.prompts_of_classes().inputs

    def read(rows: torch.Tensor, moved: torch.Tensor | None) -> torch.Tensor:
        turn.classes, turn.shifts = rows, moved
        picked = rows.to(stream.device)
        return stream.text_features({name: value[picked] for name, value in given.items()})

    made = []
    for start in range(0, len(classes), size):
        rows = classes[start : start + size]
        moved = None if shifts is None else shifts[start : start + size]
        if torch.is_grad_enabled() and len(classes) > size:
            made.append(checkpoint(read, rows, moved, use_reentrant=False))
        else:
            made.append(read(rows, moved))
    return torch.cat(made)
