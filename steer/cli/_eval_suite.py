"""`steer eval --suite`: a public benchmark's files, the model alone first, then other prompts and methods beside it."""

from __future__ import annotations

import json as _json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SteerError, unknown_name
from ..files import write_whole
from ._named import methods_of
from ._output import print_json, print_table

if TYPE_CHECKING:
    from ..method import Method
    from ..suites import Answer, Comparison, Estimate, Question, Score, Suite

UNSTEERED = "unsteered"
PLACE = "{question}"


@dataclass(frozen=True)
class Asked:
    """What is asked, and how.

    Attributes:
        suite: the benchmark.
        questions: that were read.
        answers: the file where answers are kept as they come, or None.
        batch_size: questions in one forward.
        max_new_tokens: written at most; None for what the suite says.
        seed: of the bootstrap.
    """

    suite: Suite
    questions: Sequence[Question]
    answers: Path | None
    batch_size: int
    max_new_tokens: int | None
    seed: int


@dataclass(frozen=True)
class Way:
    """One way of answering.

    Attributes:
        name: in tables.
        method: attached, or None.
        wording: how each question is put.
        template: how an example is written; None for the processor's chat template.
    """

    name: str
    method: Method | None = None
    wording: str = PLACE
    template: str | None = None


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


def refuse(suite: str | None, of_suites: dict[str, Any], of_others: dict[str, Any]) -> None:
    """Raise where an option was given that is for suites and there is none, or the other way round."""
    for option, value in (of_suites if suite is None else of_others).items():
        if value not in (None, False, [], 0):
            reason = "it goes with --suite" if suite is None else f"suite {suite!r} has files and questions of its own"
            raise SteerError(f"{option} says nothing here: {reason}; leave it out")


def read(name: str, files: Sequence[str], images: Path | None, limit: int | None) -> tuple[Suite, list[Question]]:
    """A suite and its questions.

    Raises:
        SteerError: there is no such suite; or its files, as the suite says.
    """
    from ..suites import suites

    known = suites()
    if name not in known:
        raise unknown_name("suite", name, known)
    questions = known[name].load(files, images, limit=limit)
    if not questions:
        raise SteerError(f"{', '.join(files)} hold no questions of suite {name!r}")
    return known[name], questions


def ways(
    model: Any, named: Sequence[str], config: Sequence[str], wording: str | None, prompts: Sequence[str]
) -> list[Way]:
    """The model alone, once for each template that a method uses; with each other prompt; and each method.

    Raises:
        SteerError: a wording without a place for the question; or methods, as `methods_of`.
    """
    from ..suites._asking import check_wording

    asks = PLACE if wording is None else wording
    for one in (asks, *prompts):
        check_wording(one)
    methods = methods_of(model, named, config)
    templates = dict.fromkeys([None, *(getattr(method, "template", None) for method in methods.values())])
    found = [
        Way(UNSTEERED + ("" if template is None else f", template {template!r}"), wording=asks, template=template)
        for template in templates
    ]
    found += [Way(f"prompt {prompt!r}", wording=prompt) for prompt in dict.fromkeys(prompts)]
    names = [method.name for method in methods.values()]
    for path, method in methods.items():
        name = method.name if names.count(method.name) == 1 else f"{method.name} ({path})"
        found.append(Way(name, method, asks, getattr(method, "template", None)))
    return found


def measure(model: Any, processor: Any, asked: Asked, all_ways: Sequence[Way]) -> list[Row]:
    """Ask in every way, the model alone first, and score each against that."""
    rows: list[Row] = []
    for way in all_ways:
        answers = asked.suite.ask(
            model,
            processor,
            asked.questions,
            way.method,
            batch_size=asked.batch_size,
            max_new_tokens=asked.max_new_tokens,
            wording=way.wording,
            template=way.template,
            answers=asked.answers,
        )
        scores = asked.suite.score(asked.questions, answers, seed=asked.seed)
        # The model alone stands first; a row of it with another template is a baseline of its own.
        base = next((row for row in rows if row.way.method is None and row.way.template == way.template), None)
        against = [] if base is None else asked.suite.compare(asked.questions, answers, base.answers, seed=asked.seed)
        rows.append(Row(way, answers, scores, against))
    return rows


def run(
    model: Any,
    processor: Any,
    asked: Asked,
    all_ways: Sequence[Way],
    record: dict[str, Any],
    out: Path | None,
    json: bool,
) -> None:
    """Ask, score, print, and write what is to be written; `record` says where it all came from."""
    rows = measure(model, processor, asked, all_ways)
    length = asked.suite.max_new_tokens if asked.max_new_tokens is None else asked.max_new_tokens
    record |= {"batch_size": asked.batch_size, "max_new_tokens": length, "seed": asked.seed}
    report(record, rows, asked, json)
    if out is not None:
        data = {**record, "rows": [row.to_dict(rows[0]) for row in rows], "answers": said(rows, asked.questions)}
        write_whole(out.absolute(), (_json.dumps(data, indent=2) + "\n").encode())
        if not json:
            print(f"answers: {out.absolute()}")


def report(record: dict[str, Any], rows: Sequence[Row], asked: Asked, json: bool) -> None:
    """A table or JSON on standard output."""
    if json:
        print_json({**record, "rows": [row.to_dict(rows[0]) for row in rows]})
        return
    first = asked.suite.shown[0]
    columns = ("", "questions", "n", *asked.suite.shown, f"{first} against unsteered", "ms / token", "relative")
    print_table(columns, [cells for row in rows for cells in _cells(row, rows[0], asked.suite)])
    print("below each number: 95 % interval, from 2,000 bootstrap resamples of whole pictures; - where it has no value")
    if len(rows) > 1:
        print("against unsteered: paired on the same questions, with the same template; p: McNemar's exact test")
    print(f"ms / token: of tokens written, in batches of {asked.batch_size}, making inputs and reading them included")


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
