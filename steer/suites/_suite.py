"""A public benchmark as this library sees it: files in, questions out; answers in, numbers with intervals out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._content import weights_digest
from .._kept import Kept, way_digest
from ..errors import SteerError
from ._asking import Answer, ask
from ._parts import Comparison, Question, Score
from ._resampling import Columns, Statistic, differences, estimates, mcnemar

if TYPE_CHECKING:
    from ..method import Method

ALL = "all"


class Suite(ABC):
    """A benchmark. Subclass it, say how its files are read and what is counted for each question, and register it.

    Attributes:
        name: what `steer eval --suite` takes.
        paper: link to where it is defined.
        summary: one line on what it measures.
        choices: two answers, the first counted as positive, whose probability at the first answer token is wanted; None
            where answers are free text.
        max_new_tokens: how much is written, where the user does not say.
        statistics: by name, what is made of the columns of `measure`, (N,) each, in many resamples at once: `w` (R, N)
            says how often each resample holds each question, and (R,) is given; nan where it is not defined.
            `metrics.mean` and `metrics.share` are most of what one needs.
        shown: the statistics that a table has.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    choices: ClassVar[tuple[str, str] | None] = None
    max_new_tokens: ClassVar[int] = 8
    statistics: ClassVar[Mapping[str, Statistic]]
    shown: ClassVar[tuple[str, ...]]

    @abstractmethod
    def load(
        self, files: Sequence[str | Path], images: str | Path | None = None, *, limit: int | None = None
    ) -> list[Question]:
        """Read the published files.

        Args:
            files: as they are published.
            images: the folder that holds the pictures.
            limit: take so many questions of each group at most, from the first on.

        Raises:
            SteerError: files are missing or of another format; the message has file and place.
        """

    @abstractmethod
    def measure(self, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
        """What is counted for each question.

        Args:
            questions: N questions.
            answers: their answers in the same order.

        Returns:
            Columns by name, (N,) each; one of them is "right", bool.
        """

    def ask(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[Question],
        method: Method | None = None,
        *,
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        wording: str = "{question}",
        template: str | None = None,
        answers: str | Path | None = None,
        progress: bool = True,
    ) -> list[Answer]:
        """Let a model answer, greedily, as it is or with a method attached.

        Processes that were launched together (`accelerate launch`) share the questions; all of them must call this, and
        each gets every answer.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            questions: from `load`, or made by hand.
            method: attached, and asked for the answers; None for the model as it is.
            batch_size: questions in one forward.
            max_new_tokens: written at most; None for what the suite says.
            wording: how a question is put, with `{question}` where its own words go.
            template: how an example is written, as in `steer.prompts.encode`; None for the method's own, if it has one.
            answers: a folder where answers are kept as they come, in a file for each process, one JSON object on a
                line; those that are there already, in the same way of asking, are not asked for again.
            progress: show a bar on a terminal.

        Returns:
            One answer for each question, in their order.

        Raises:
            SteerError: the model does not write text; a wording without a place for the question; a folder of answers
                that cannot be written, is of another model or other data, or is damaged.
        """
        length = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        options: dict[str, Any] = {"choices": self.choices, "max_new_tokens": length, "wording": wording}
        options["template"] = template
        kept: Kept[Answer] | None = None
        if answers is not None:
            name = "unsteered" if method is None else method.name
            asked = {question.key: question.example for question in questions}
            how = way_digest(method, suite=self.name, **options)
            kept = Kept(Path(answers), Answer, asked, weights_digest(model), how, name)
        return ask(model, processor, questions, method, **options, kept=kept, batch_size=batch_size, progress=progress)

    def score(
        self, questions: Sequence[Question], answers: Sequence[Answer], *, resamples: int = 2000, seed: int = 0
    ) -> list[Score]:
        """The suite's numbers for each group, and for all together where there are several.

        Args:
            questions: what was asked.
            answers: what was answered, in any order.
            resamples: of the bootstrap over clusters.
            seed: of the bootstrap.

        Raises:
            SteerError: a question without an answer.
        """
        columns = self._columns(questions, answers)
        options: dict[str, Any] = {"resamples": resamples, "seed": seed}
        found = []
        for group, rows in _groups(questions):
            mine, clusters = _rows(columns, rows), [questions[i].cluster for i in rows]
            found.append(Score(group, len(rows), estimates(self.statistics, mine, clusters=clusters, **options)))
        return found

    def compare(
        self,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        baseline: Sequence[Answer],
        *,
        resamples: int = 2000,
        seed: int = 0,
    ) -> list[Comparison]:
        """What changed against other answers to the same questions, paired question by question.

        Args:
            questions: what was asked.
            answers: what was answered, in any order.
            baseline: what the differences are from.
            resamples: of the bootstrap over clusters.
            seed: of the bootstrap.

        Raises:
            SteerError: a question without an answer in one of the two.
        """
        first, second = self._columns(questions, answers), self._columns(questions, baseline)
        options: dict[str, Any] = {"resamples": resamples, "seed": seed}
        found = []
        for group, rows in _groups(questions):
            one, other, clusters = _rows(first, rows), _rows(second, rows), [questions[i].cluster for i in rows]
            changed = differences(self.statistics, one, other, clusters=clusters, **options)
            found.append(Comparison(group, len(rows), changed, mcnemar(one["right"], other["right"])))
        return found

    def _columns(self, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
        by_key = {answer.key: answer for answer in answers}
        missing = [question.key for question in questions if question.key not in by_key]
        if not questions:
            raise SteerError(f"suite {self.name!r} has no questions to score")
        if missing:
            raise SteerError(f"{len(missing)} of {len(questions)} questions have no answer, such as {missing[0]!r}")
        return self.measure(questions, [by_key[question.key] for question in questions])


def _groups(questions: Sequence[Question]) -> list[tuple[str, list[int]]]:
    """The places of each group's questions, and of all where there are several groups."""
    found: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        found.setdefault(question.group, []).append(place)
    return [*found.items()] + ([(ALL, list(range(len(questions))))] if len(found) > 1 else [])


def _rows(columns: Columns, rows: list[int]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(values)[rows] for name, values in columns.items()}
