"""CHAIR: which objects that a caption mentions are not in the picture?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..data._pictures import Pictures
from ..examples import Example
from ._asking import Answer
from ._coco import chosen, read_annotations, sort
from ._files import picture, picture_folder
from ._objects import Objects
from ._parts import Question
from ._resampling import Statistic
from ._suite import Suite
from ._weighted import mean, share

PROMPT = "Please describe this image in detail."


@dataclass(frozen=True)
class Facts:
    """What scoring a caption needs.

    Attributes:
        objects: the names of those that are in the picture.
        table: how they are found in a caption.
    """

    objects: frozenset[str]
    table: Objects


class Chair(Suite):
    """Captions (Rohrbach et al., 2018): how much of what they mention is not in the picture."""

    name: ClassVar[str] = "chair"
    paper: ClassVar[str] = "https://arxiv.org/abs/1809.02156"
    summary: ClassVar[str] = "Objects that captions mention and that are not in the picture."
    max_new_tokens: ClassVar[int] = 512
    shown: ClassVar[tuple[str, ...]] = ("chair_i", "chair_s", "recall", "words", "mentions")

    def load(
        self, files: Sequence[str | Path], images: str | Path | None = None, *, limit: int | None = None
    ) -> list[Question]:
        """Read COCO's annotations; each picture is a question, "Please describe this image in detail."

        Args:
            files: instances_val2014.json and captions_val2014.json as COCO publishes them, a table of synonyms in a
                .txt file (an object on each line, then its synonyms, with commas between them), and, where not all
                pictures are meant, a .jsonl file with `{"image_id": ...}` or `{"image": file name}` on each line.
            images: the folder that holds the pictures.
            limit: take so many pictures at most, from the first on.

        Raises:
            SteerError: a file or a picture is missing.
            FileFormatError: a file is of another format, or a category is not in the table.
        """
        folder = picture_folder(images, self.name)
        given = sort(files)
        table = Objects.read(given.synonyms)
        known = read_annotations(given, table)
        group = given.instances[0][0].stem
        found = []
        for key in chosen(given, known, limit):
            name = known.files[key]
            example = Example(PROMPT, "", Pictures((picture(folder, name, f"picture {key}"),)))  # type: ignore[arg-type]
            found.append(Question(str(key), group, example, name, Facts(frozenset(known.objects[key]), table)))
        return found

    def measure(self, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
        """What is counted for each caption.

        Args:
            questions: N questions, with the picture's objects.
            answers: the captions, in the same order.

        Returns:
            int64 columns (N,): `mentions` of objects, `hallucinated` ones among them, `objects` in the picture,
            `recalled` ones among these, `words`; and `right`, bool: a caption that hallucinates nothing.
        """
        rows = [_count(question.facts, answer.text) for question, answer in zip(questions, answers, strict=True)]
        names = ("mentions", "hallucinated", "objects", "recalled", "words")
        columns: dict[str, NDArray[Any]] = dict(
            zip(names, np.array(rows, np.int64).reshape(-1, len(names)).T, strict=True)
        )
        return {**columns, "right": columns["hallucinated"] == 0}

    statistics: ClassVar[Mapping[str, Statistic]] = {
        "chair_i": lambda c, w: share(c["hallucinated"], c["mentions"], w),
        "chair_s": lambda c, w: mean(c["hallucinated"] > 0, w),
        "recall": lambda c, w: share(c["recalled"], c["objects"], w),
        "words": lambda c, w: mean(c["words"], w),
        "mentions": lambda c, w: mean(c["mentions"], w),
    }


def _count(facts: Facts, caption: str) -> tuple[int, ...]:
    mentioned = facts.table.mentioned(caption)
    wrong = sum(name not in facts.objects for name in mentioned)
    words = len(re.findall(r"\w+(?:['’-]\w+)*", caption))
    return len(mentioned), wrong, len(facts.objects), len(facts.objects.intersection(mentioned)), words
