"""Asking a model a suite's questions: what it writes, how likely each choice was, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._kept import Kept
from .._together import Asking
from ..errors import SteerError
from ..examples import Example
from ..prompts import Prompt, check_writes, write
from ._first_token import Watch, choice_tokens

if TYPE_CHECKING:
    from ..method import Method
    from ._parts import Question

PLACE = "{question}"


@dataclass(frozen=True)
class Answer:
    """What was answered to one question.

    Attributes:
        key: of the question.
        text: what was written, without special tokens and outer spaces.
        p_yes: probability of the suite's first choice against its second at the first answer token; None where answers
            are free text, or a method has no one first token.
        mass: probability of both together among all tokens: how much the first token was about them at all.
        tokens: written, the one that ends it included; None where a method does not write once for each question.
        ms: milliseconds, the batch's divided by its questions; making inputs and writing included.
    """

    key: str
    text: str
    p_yes: float | None = None
    mass: float | None = None
    tokens: int | None = None
    ms: float = float("nan")


def ask(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    method: Method | None = None,
    *,
    choices: tuple[str, str] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 8,
    wording: str = PLACE,
    template: str | None = None,
    progress: bool = True,
    kept: Kept[Answer] | None = None,
) -> list[Answer]:
    """Let a model answer, greedily, as it is or with a method attached; launched processes share the questions.

    Args:
        model: any mapped model that writes text.
        processor: its processor or tokenizer.
        questions: what is asked.
        method: attached, and asked for the answers; None for the model as it is.
        choices: two answers whose probabilities at the first answer token are wanted.
        batch_size: questions in one forward.
        max_new_tokens: written at most.
        wording: how a question is put, with `{question}` where its own words go.
        template: how an example is written, as in `steer.prompts.encode`; None for the method's own, if it has one.
        progress: show a bar on a terminal.
        kept: where answers are kept as they come; what is there already is not asked.

    Returns:
        One answer for each question, in their order.

    Raises:
        SteerError: the model does not write text; two questions with one key; no place for the question in the wording.
    """
    check_writes(model)
    check_wording(wording)
    keys = [question.key for question in questions]
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twice is not None:
        raise SteerError(f"{keys.count(twice)} questions have the key {twice!r}; each needs its own")
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "template": template}
    asker = _Asker(model, processor, method, choices, wording, options)
    label = f"asking {method.name if method is not None else 'the model alone'}"
    asking = Asking(keys, lambda places: asker.batch([questions[i] for i in places]), batch_size, label, kept, progress)
    return asking.answers(model)


def check_wording(wording: str) -> None:
    """Raise a SteerError where a wording has no place for the question."""
    if PLACE not in wording:
        raise SteerError(f"the wording {wording!r} has no place for the question; write {PLACE} where its words go")


def worded(example: Example, wording: str) -> Example:
    """The same question in other words around its own."""
    return replace(example, question=wording.replace(PLACE, example.question))


class _Asker:
    """One way of asking."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        method: Method | None,
        choices: tuple[str, str] | None,
        wording: str,
        options: dict[str, Any],
    ) -> None:
        self._model, self._processor, self._method, self._wording = model, processor, method, wording
        self._tokens = choice_tokens(processor, choices) if choices is not None else None
        self._options = options

    def batch(self, questions: Sequence[Question]) -> list[Answer]:
        queries = [worded(question.example, self._wording) for question in questions]
        start = time.perf_counter()
        with Watch(self._model, self._tokens) as watch:
            texts = self._write(queries)
        ms = 1000 * (time.perf_counter() - start) / len(queries)
        first = watch.first(len(queries))
        return [
            Answer(question.key, text, *one, ms=ms) for question, text, one in zip(questions, texts, first, strict=True)
        ]

    def _write(self, queries: list[Example]) -> list[str]:
        if self._method is not None:
            return self._method.answer(self._model, self._processor, queries, **self._options)
        return write(self._model, self._processor, [Prompt(query) for query in queries], **self._options)
