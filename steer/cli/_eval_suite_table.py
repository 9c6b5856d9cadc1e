"""What `steer eval --suite` prints and writes: rows with intervals, each beside the model alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._output import print_table

if TYPE_CHECKING:
    from ..suites import Answer, Comparison, Estimate, Question, Score, Suite
    from ._eval_suite import Way


@dataclass(frozen=True)
class Row:
    """How one way did.

    Attributes:
        way: which one.
        answers: one for each question.
        scores: by group.
        against: the unsteered row with the same template, by group; empty for that row itself.
    """

    way: Way
    answers: Sequence[Answer] = field(repr=False)
    scores: Sequence[Score]
    against: Sequence[Comparison]

    @property
    def ms(self) -> float:
        """Milliseconds for a question."""
        return sum(answer.ms for answer in self.answers) / len(self.answers)

    @property
    def ms_per_token(self) -> float | None:
        """Milliseconds for a token that was written; None where a method does not write once for each question."""
        tokens = [answer.tokens for answer in self.answers]
        if any(count is None for count in tokens) or not any(tokens):
            return None
        return sum(answer.ms for answer in self.answers) / sum(count or 0 for count in tokens)

    def to_dict(self, first: Row) -> dict[str, Any]:
        """Plain data for JSON; `first` is the unsteered row."""
        mine, base = self.ms_per_token, first.ms_per_token
        relative = None if mine is None or base is None else mine / base
        cost = {"ms_per_question": self.ms, "ms_per_token": mine, "ms_per_token_relative": relative}
        return {
            "name": self.way.name,
            "wording": self.way.wording,
            "template": self.way.template,
            "scores": [score.to_dict() for score in self.scores],
            "against_unsteered": [one.to_dict() for one in self.against],
            **cost,
        }


def report(rows: Sequence[Row], suite: Suite, batch_size: int) -> None:
    """A table on standard output."""
    first = suite.shown[0]
    columns = ("", "questions", "n", *suite.shown, f"{first} against unsteered", "ms / token", "relative")
    print_table(columns, [cells for row in rows for cells in _cells(row, rows[0], suite)])
    print("below each number: 95 % interval, from 2,000 bootstrap resamples of whole pictures; - where it has no value")
    if len(rows) > 1:
        print("against unsteered: paired on the same questions, with the same template; p: McNemar's exact test")
    print(f"ms / token: of tokens written, in batches of {batch_size}, making inputs and reading them included")


def said(rows: Sequence[Row], questions: Sequence[Question]) -> list[dict[str, Any]]:
    """By question: what was asked, what is right and what each way said."""
    found: list[dict[str, Any]] = []
    for place, question in enumerate(questions):
        words = {"key": question.key, "group": question.group, "question": question.example.question}
        answers = {row.way.name: _answer(row.answers[place]) for row in rows}
        found.append({**words, "answer": question.example.answer or None, "said": answers})
    return found


def _answer(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "p_yes": answer.p_yes, "mass": answer.mass, "tokens": answer.tokens}


def _cells(row: Row, first: Row, suite: Suite) -> Iterator[tuple[str, ...]]:
    numbers = row.to_dict(first)
    cost = _number(numbers["ms_per_token"], ".1f"), _number(numbers["ms_per_token_relative"], ".2f")
    for place, score in enumerate(row.scores):
        change = ""
        if row.against:
            against = row.against[place]
            change = f"{_cell(against.differences[suite.shown[0]], '+.3f')}\np {against.mcnemar.p:.2g}"
        values = [_cell(score.metrics[name], ".3f") for name in suite.shown]
        yield (row.way.name if place == 0 else "", score.group, str(score.n), *values, change, *cost)
        cost = ("", "")


def _cell(one: Estimate, form: str) -> str:
    """A number with its interval below it."""
    if not math.isfinite(one.value):
        return "-"
    interval = f"{one.low:{form}} to {one.high:{form}}" if math.isfinite(one.low) else "-"
    return f"{one.value:{form}}\n{interval}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
