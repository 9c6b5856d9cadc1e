"""Objects that a text mentions, by a table of synonyms: what CHAIR counts.

The rules are those of utils/chair.py in github.com/LisaAnne/Hallucination (Rohrbach et al., 2018), with a singular of
our own: the original asks a library for the singular of every word, here a word is taken as the table has it, or else
in the first of a few possible singulars that the table has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import FileFormatError, SteerError

# Words that belong together though one alone is an object as well. Whatever the table has of several words is added.
TOGETHER = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light",
    "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove",
    "tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier", "potted plant",
    "laptop computer", "home plate",
)  # fmt: skip
ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub",
)  # fmt: skip
VEHICLES = ("jet", "train")
# A baby bird is no person, and neither is a passenger train.
QUALIFIED = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in VEHICLES},
    "bow tie": "tie",
    "toilet seat": "toilet",
}
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "oxen": "ox", "policemen": "policeman", "firemen": "fireman", "snowmen": "snowman", "fishermen": "fisherman",
}  # fmt: skip
# Endings of plurals, and what they may stand for, the likeliest first.
ENDINGS = (("s", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""))
WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*|[^\sa-z0-9]")


class Objects:
    """A table of synonyms, and how it is looked up in a text.

    Args:
        rows: for each object its name and then its synonyms, in lower case.
    """

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.names = {word: row[0] for row in rows for word in row}
        together = {entry: entry for entry in (*TOGETHER, *(word for word in self.names if " " in word))}
        self._compounds = {tuple(entry.split()): stands for entry, stands in {**together, **QUALIFIED}.items()}
        self._longest = max(map(len, self._compounds))
        self._known = {*self.names, *(word for words in self._compounds for word in words)}

    @classmethod
    def read(cls, path: Path) -> Objects:
        """From a file with an object on each line: its name and its synonyms, with commas between them.

        Raises:
            SteerError: it cannot be read.
            FileFormatError: a line has an empty name, or a word stands for two objects.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SteerError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise FileFormatError(f"{path} is not text: {error}") from error
        rows: list[list[str]] = []
        owner: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = [" ".join(word.lower().split()) for word in line.split(",")]
            if not all(row):
                raise FileFormatError(f"{path}:{number} has an empty name; write `object, synonym, synonym`")
            for word in row:
                if owner.setdefault(word, row[0]) != row[0]:
                    raise FileFormatError(f"{path}:{number}: {word!r} stands for {owner[word]!r} already")
            rows.append(row)
        if not rows:
            raise FileFormatError(f"{path} names no objects")
        return cls(rows)

    def mentioned(self, text: str) -> list[str]:
        """The object of each mention, by its name, in the order of the text; twice where it is mentioned twice."""
        words = list(self._joined(WORD.findall(text.lower())))
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        return [self.names[word] for word in words if word in self.names]

    def _joined(self, words: list[str]) -> Iterator[str]:
        """The text's words, singular where the table has that, with what belongs together as one."""
        place = 0
        while place < len(words):
            for length in range(min(self._longest, len(words) - place), 1, -1):
                found = self._compound(words[place : place + length])
                if found is not None:
                    yield found
                    place += length
                    break
            else:
                forms = self._forms(words[place])
                yield next((form for form in forms if form in self.names), forms[0])
                place += 1

    def _compound(self, words: list[str]) -> str | None:
        spelt = itertools.product(*map(self._forms, words))
        return next((self._compounds[one] for one in spelt if one in self._compounds), None)

    def _forms(self, word: str) -> list[str]:
        """What a word may be in the table, the likeliest first; the word itself where it is not there in any form."""
        found = [form for form in (word, IRREGULAR.get(word, word), *_singulars(word)) if form in self._known]
        return found or [word]


def _singulars(word: str) -> list[str]:
    return [word.removesuffix(ending) + stands for ending, stands in ENDINGS if word.endswith(ending)]
