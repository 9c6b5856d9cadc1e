"""What `fit` is given, looked at before anything is computed: labelled pictures, and sentences about classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steer import Example, SteerError, TwoStream

from ._encode import plain_texts
from ._prompts import filled

if TYPE_CHECKING:
    from .learner import PromptLearner


def labelled(examples: Sequence[Any], what: str) -> list[tuple[Any, str]]:
    """(picture, class name) pairs from pairs or Examples.

    Raises:
        SteerError: something else; the message has its place.
    """
    made = []
    for index, one in enumerate(examples):
        picture, label = (one.images[0], one.answer) if isinstance(one, Example) and one.images else (None, None)
        if isinstance(one, tuple | list) and len(one) == 2:
            picture, label = one
        if picture is None or not isinstance(label, str) or not label.strip():
            raise SteerError(
                f"{what}[{index}] must be (picture, class name) or an Example with one picture, got {one!r:.80}"
            )
        made.append((picture, label))
    return made


def sentences_of(method: PromptLearner, stream: TwoStream, given: Any) -> list[torch.Tensor]:
    """CoPrompt's other descriptions: for each number of a sentence the features of all classes, (K, D) each.

    Args:
        method: has classes, and templates for where nothing is given.
        stream: the model, with nothing attached.
        given: from the name of a class to its sentences, a JSON file of that, or None.

    Raises:
        SteerError: not that, or a class has no sentences; the message names it.
    """
    if given is None:
        return [_one(stream, [filled(template, name) for name in method.classes]) for template in method.templates]
    if not isinstance(given, Mapping):
        given = _read(given)
    without = [name for name in method.classes if not given.get(name)]
    if without:
        raise SteerError(f"sentences has none for {', '.join(map(repr, without[:5]))} ({len(without)} classes in all)")
    for name in method.classes:
        if not isinstance(given[name], list | tuple) or not all(isinstance(one, str) for one in given[name]):
            raise SteerError(f"sentences[{name!r}] must be a list of sentences, got {given[name]!r:.80}")
    # Classes with fewer sentences begin again with their first.
    most = max(len(given[name]) for name in method.classes)
    return [_one(stream, [given[name][i % len(given[name])] for name in method.classes]) for i in range(most)]


def _read(path: Any) -> Mapping[str, Any]:
    try:
        made = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise SteerError(f"sentences: {path!r:.80} is neither a mapping nor a JSON file of one: {error}") from error
    if not isinstance(made, Mapping):
        raise SteerError(f"sentences: {path} holds a {type(made).__name__}, not an object of lists")
    return made


def _one(stream: TwoStream, texts: list[str]) -> torch.Tensor:
    return plain_texts(stream, stream.tokens(texts))
