"""Answers kept in a file as they come, one JSON object on a line, so that a run that was cut off goes on.

Each line says by a digest what it answers: model, method, words and pictures. Lines with other digests are left where
they are and not used, so that one file can hold the answers of many ways, and an old one can do no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._config import encode_config
from .._content import picture_bytes, weights_digest
from ..data._files import json_rows
from ..data._pictures import Pictures
from ..errors import FileFormatError, SteerError
from ._asking import Answer

if TYPE_CHECKING:
    from ..method import Method
    from ._parts import Question

NUMBERS = ("p_yes", "mass", "tokens", "ms")


class Kept:
    """The answers of one way of asking in a file.

    Args:
        path: of the file; made if there is none.
        questions: what is asked.
        way: digest of the way of asking, from `way_digest`.
        name: of the way, for people who read the file.

    Raises:
        SteerError: the file cannot be read or written.
        FileFormatError: a line, other than a last one that was cut off, is no answer; the message has its number.
    """

    def __init__(self, path: Path, questions: Sequence[Question], way: str, name: str) -> None:
        self._path, self._name = path, name
        self._asked = {question.key: _asked(question, way) for question in questions}
        self._words = {question.key: question.example.question for question in questions}
        self.known = self._read()

    def keep(self, answers: Sequence[Answer]) -> None:
        """Append answers; they are on disk when this returns."""
        lines = [json.dumps(self._row(answer)) + "\n" for answer in answers]
        with self._path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _row(self, answer: Answer) -> dict[str, Any]:
        words = {"way": self._name, "key": answer.key, "question": self._words[answer.key], "answer": answer.text}
        numbers = {name: value for name, value in asdict(answer).items() if name in NUMBERS}
        return {**words, **numbers, "asked": self._asked[answer.key]}

    def _read(self) -> dict[str, Answer]:
        _drop_unfinished_line(self._path)
        found = {}
        try:
            with self._path.open("rb") as lines:
                for row, where in json_rows(lines, self._path):
                    key, answer = _answer(row, where)
                    if self._asked.get(key) == row["asked"]:
                        found[key] = answer
        except OSError as error:
            raise SteerError(f"cannot read {self._path}: {error.strerror}") from error
        return found


def way_digest(model: Any, method: Method | None, **options: Any) -> str:
    """Of everything but the questions that an answer depends on, save the hardware."""
    digest = hashlib.sha256(weights_digest(model).encode())
    digest.update(json.dumps(options, sort_keys=True).encode())
    if method is not None:
        digest.update(f"{type(method).__qualname__} {json.dumps(encode_config(method), sort_keys=True)}".encode())
        for name, tensor in sorted(method.tensors.items()):
            flat = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {flat.dtype} {tuple(flat.shape)} ".encode() + picture_bytes(flat))
    return digest.hexdigest()


def _asked(question: Question, way: str) -> str:
    digest = hashlib.sha256(f"{way} {question.key}\0{question.example.question}\0".encode())
    images: Any = question.example.images
    # A file's own bytes, not its pixels: to decode every picture once more takes longer than many an answer.
    for source in images.sources if isinstance(images, Pictures) else images:
        digest.update(_file_digest(source) if isinstance(source, Path) else picture_bytes(source))
    return digest.hexdigest()


@lru_cache(maxsize=65536)
def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise SteerError(f"cannot read the picture {path}: {error.strerror}") from error


def _drop_unfinished_line(path: Path) -> None:
    """Whatever a cut left after the last whole line; makes the file if there is none."""
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            size = min(end, 2**20)
            file.seek(end - size)
            tail = file.read(size)
            if tail and not tail.endswith(b"\n"):
                file.truncate(end - size + tail.rfind(b"\n") + 1)
    except OSError as error:
        raise SteerError(f"cannot write {path}: {error.strerror}") from error


def _answer(row: Any, where: str) -> tuple[str, Answer]:
    kinds: dict[str, Any] = {"key": str, "answer": str, "asked": str}
    wrong = not isinstance(row, dict) or any(not isinstance(row.get(name), kind) for name, kind in kinds.items())
    if wrong or any(not isinstance(row.get(name), int | float | None) for name in NUMBERS) or row["ms"] is None:
        raise FileFormatError(f"{where} is no answer that steer kept; give another file, or remove that line")
    known = {field.name for field in fields(Answer)}
    numbers = {name: row[name] for name in NUMBERS if name in known}
    return row["key"], Answer(row["key"], row["answer"], **numbers)
