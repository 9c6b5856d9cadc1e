"""POPE: is there such an object in the picture? Read, asked and scored as published, and more strictly beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data._pictures import Pictures
from ..errors import FileFormatError, unknown_name
from ..examples import Example
from . import _weighted, metrics
from ._asking import Answer
from ._files import json_lines, picture, picture_folder
from ._parts import Question
from ._resampling import Columns, Statistic
from ._suite import Suite
from ._weighted import Weights, mean, share

KEYS = ("question_id", "image", "text", "label")
LABELS = ("yes", "no")
NO = frozenset({"No", "not", "no"})


class Pope(Suite):
    """Yes-or-no questions about objects (Li et al., 2023): how often a model sees what is not there."""

    name: ClassVar[str] = "pope"
    paper: ClassVar[str] = "https://arxiv.org/abs/2305.10355"
    summary: ClassVar[str] = "Yes-or-no questions about objects that are in a picture, or are not."
    choices: ClassVar[tuple[str, str] | None] = LABELS
    shown: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "precision", "recall", "yes_ratio", "auroc", "ece")

    def load(
        self, files: Sequence[str | Path], images: str | Path | None = None, *, limit: int | None = None
    ) -> list[Question]:
        """Read POPE's files: JSON lines with question_id, image, text and label, one file for each kind of negatives.

        Args:
            files: such as coco_pope_random.json; each is a group, under the file's name without its ending.
            images: the folder that holds the pictures.
            limit: take so many questions of each file at most, from the first on.

        Raises:
            SteerError: a file or a picture is missing.
            FileFormatError: a line is no question; the message has file, line and reason.
        """
        folder = picture_folder(images, self.name)
        found: list[Question] = []
        for group, path in _groups(files).items():
            for row, where in json_lines(path, limit):
                found.append(_question(row, where, group, folder))
        _check_keys(found)
        return found

    def measure(self, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
        """What is counted: `label`, `said` (yes as published), `right`, `strict` (right strictly), `decided`, `p_yes`.

        Args:
            questions: N questions.
            answers: their answers in the same order.

        Returns:
            Columns of bool (N,); `p_yes` is fp64 (N,), nan where it is not known.
        """
        label = np.array([question.example.answer == "yes" for question in questions])
        said = np.array([published(answer.text) == "yes" for answer in answers])
        strictly = [strict(answer.text) for answer in answers]
        decided = np.array([one is not None for one in strictly])
        well = np.array([one == question.example.answer for one, question in zip(strictly, questions, strict=True)])
        chance = np.array([math.nan if answer.p_yes is None else answer.p_yes for answer in answers])
        columns = {"label": label, "said": said, "right": said == label, "strict": well, "decided": decided}
        return {**columns, "p_yes": chance}

    statistics: ClassVar[Mapping[str, Statistic]] = {
        "accuracy": lambda c, w: mean(c["right"], w),
        "precision": lambda c, w: share(c["label"] & c["said"], c["said"], w),
        "recall": lambda c, w: share(c["label"] & c["said"], c["label"], w),
        "f1": lambda c, w: share(2 * (c["label"] & c["said"]), c["label"].astype(int) + c["said"], w),
        "yes_ratio": lambda c, w: mean(c["said"], w),
        "strict_accuracy": lambda c, w: mean(c["strict"], w),
        "undecided": lambda c, w: mean(~c["decided"], w),
        "auroc": lambda c, w: _known(lambda p, y, w: _weighted.auroc(p, y, w), c, w),
        "ece": lambda c, w: _known(lambda p, y, w: _weighted.ece(*_sureness(p, y), w), c, w),
        "brier": lambda c, w: _known(lambda p, y, w: mean((p - y) ** 2, w), c, w),
        "nll": lambda c, w: _known(lambda p, y, w: mean(metrics.surprise(p, y), w), c, w),
        "aurc": lambda c, w: _known(lambda p, y, w: _weighted.aurc(*_sureness(p, y), w), c, w),
    }


def published(text: str) -> str:
    """Yes or no by the rule of POPE's own evaluate.py.

    Of what stands before the first full stop, commas dropped, the words between single spaces are looked at: "No", "no"
    or "not" among them is a no, and everything else is a yes, an empty answer, "NO" and "I can't tell" included.

    Source: evaluate.py of github.com/AoiDragon/POPE, commit f3ec604.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if NO.intersection(words) else "yes"


def strict(text: str) -> str | None:
    """Yes or no only if that is the answer's first word, case and punctuation aside; None for anything else."""
    first = re.match(r"\W*(\w+)", text)
    word = first.group(1).casefold() if first else ""
    return word if word in LABELS else None


def _groups(files: Sequence[str | Path]) -> dict[str, Path]:
    """The files by the names of their groups: the folder's name before it where two files are called alike."""
    paths = [Path(file) for file in files]
    stems = [path.stem for path in paths]
    return {
        path.stem if stems.count(path.stem) == 1 else f"{path.absolute().parent.name}/{path.stem}": path
        for path in paths
    }


def _question(row: Any, where: str, group: str, folder: Path) -> Question:
    if not isinstance(row, Mapping) or any(key not in row for key in KEYS):
        has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise FileFormatError(f"{where} is no question of POPE's: it needs the keys {', '.join(KEYS)}, and has {has}")
    for key in ("image", "text", "label"):
        if not isinstance(row[key], str):
            raise FileFormatError(f"{where}: {key} is {row[key]!r:.80}, which is not a string")
    if row["label"] not in LABELS:
        raise FileFormatError(f"{where}: {unknown_name('label', row['label'], LABELS)}")
    example = Example(row["text"], row["label"], Pictures((picture(folder, row["image"], where),)))  # type: ignore[arg-type]
    return Question(f"{group}/{row['question_id']}", group, example, row["image"], where)


def _check_keys(questions: Sequence[Question]) -> None:
    seen: dict[str, str] = {}
    for question in questions:
        if question.key in seen:
            raise FileFormatError(f"{question.facts}: the question_id is that of {seen[question.key]} already")
        seen[question.key] = question.facts


def _known(metric: Callable[..., NDArray[np.float64]], columns: Columns, w: Weights) -> NDArray[np.float64]:
    """A metric of the probabilities; nan unless every question has one, so that all rows are of the same questions."""
    if np.isnan(columns["p_yes"]).any():
        return np.full(len(w), math.nan)
    return metric(columns["p_yes"], columns["label"], w)


def _sureness(chance: NDArray[Any], label: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The probability of the likelier of the two answers, and whether that is the right one."""
    return np.maximum(chance, 1 - chance), (chance > 0.5) == label
