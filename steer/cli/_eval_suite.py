"""`steer eval --suite`: a public benchmark's files, the model alone first, then other prompts and methods beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SteerError, unknown_name
from ._eval_out import Output, names_of
from ._model import is_main_process

if TYPE_CHECKING:
    from ..method import Method
    from ..suites import Question, Suite
    from ._eval_suite_table import Row

UNSTEERED = "unsteered"
PLACE = "{question}"


@dataclass(frozen=True)
class Asked:
    """What is asked, and how.

    Attributes:
        suite: the benchmark.
        questions: that were read.
        folder: where answers are kept as they come, or None.
        batch_size: questions in one forward.
        max_new_tokens: written at most; None for what the suite says.
        seed: of the bootstrap.
    """

    suite: Suite
    questions: Sequence[Question]
    folder: Path | None
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


def ways(methods: dict[str, Method], wording: str | None, prompts: Sequence[str]) -> list[Way]:
    """The model alone, once for each template that a method uses; with each other prompt; and each method.

    Raises:
        SteerError: a wording without a place for the question.
    """
    from ..suites._asking import check_wording

    asks = PLACE if wording is None else wording
    for one in (asks, *prompts):
        check_wording(one)
    templates = dict.fromkeys([None, *(getattr(method, "template", None) for method in methods.values())])
    found = [
        Way(UNSTEERED + ("" if template is None else f", template {template!r}"), wording=asks, template=template)
        for template in templates
    ]
    found += [Way(f"prompt {prompt!r}", wording=prompt) for prompt in dict.fromkeys(prompts)]
    for name, method in zip(names_of(methods), methods.values(), strict=True):
        found.append(Way(name, method, asks, getattr(method, "template", None)))
    return found


def _measure(model: Any, processor: Any, asked: Asked, all_ways: Sequence[Way]) -> list[Row]:
    """Ask in every way, the model alone first, and score each against that."""
    from ._eval_suite_table import Row

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
            answers=asked.folder,
        )
        scores = asked.suite.score(asked.questions, answers, seed=asked.seed)
        # The model alone stands first; a row of it with another template is a baseline of its own.
        base = next((row for row in rows if row.way.method is None and row.way.template == way.template), None)
        against = [] if base is None else asked.suite.compare(asked.questions, answers, base.answers, seed=asked.seed)
        rows.append(Row(way, answers, scores, against))
    return rows


def run(
    model: Any, processor: Any, asked: Asked, all_ways: Sequence[Way], record: dict[str, Any], output: Output
) -> None:
    """Ask, score, print, and write what is to be written; `record` says where it all came from."""
    from . import _eval_suite_table as table

    rows = _measure(model, processor, asked, all_ways)
    if not is_main_process():  # all of them have measured by now
        return
    length = asked.suite.max_new_tokens if asked.max_new_tokens is None else asked.max_new_tokens
    record |= {"batch_size": asked.batch_size, "max_new_tokens": length, "seed": asked.seed}
    plain = [row.to_dict(rows[0]) for row in rows]
    output.print(record, plain)
    if not output.json:
        table.report(rows, asked.suite, asked.batch_size)
    output.write(record, plain, table.said(rows, asked.questions))
