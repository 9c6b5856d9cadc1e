"""Answers kept in a folder as they come, so that a run that was cut off goes on, in as many processes as it is given.

Each process appends to a file of its own, one JSON object on a line. A line says by digests what it answers: model,
question, and way of asking. Lines of other ways are left where they are and not used, so that one folder can hold the
answers of many methods; lines of another model, or of other data, are an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ._config import encode_config
from ._content import picture_bytes
from .data._files import json_rows
from .data._pictures import Pictures
from .errors import FileFormatError, SteerError

if TYPE_CHECKING:
    from .examples import Example
    from .method import Method

PATTERN = "answers-*.jsonl"
DIGESTS = ("model", "asked", "how")


class Keyed(Protocol):
    """An answer: a dataclass of plain values, one of which says which question it is to."""

    @property
    def key(self) -> str: ...


A = TypeVar("A", bound=Keyed)


@dataclass(frozen=True)
class Kept(Generic[A]):
    """The answers of one way of asking in a folder.

    Attributes:
        folder: made with the first answer.
        kind: the class of an answer.
        questions: by key.
        model: digest of its weights, from `_content.weights_digest`.
        how: digest of the way of asking, from `way_digest`.
        name: of the way, for people who read the files.
    """

    folder: Path
    kind: type[A]
    questions: Mapping[str, Example]
    model: str
    how: str
    name: str
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def read(self) -> dict[str, A]:
        """The answers that are there, by key.

        Raises:
            SteerError: the folder cannot be read, or holds answers of another model or to other questions.
            FileFormatError: a line, other than a last one that was cut off, is no answer; the message has its number.
        """
        found = {}
        for row, where in self._rows():
            key = row["key"]
            if row["model"] != self.model:
                raise self._other(where, "another model")
            if key in self.questions and row["asked"] != self._asked(key):
                raise self._other(where, f"another question {key!r} than that of this data")
            if key in self.questions and row["how"] == self.how:
                found[key] = _answer(row, self.kind, where)
        return found

    def keep(self, answers: Sequence[A], process: int) -> None:
        """Append answers to a process's file; they are on disk when this returns.

        Raises:
            SteerError: it cannot be written.
        """
        path = self.folder / PATTERN.replace("*", str(process))
        lines = "".join(json.dumps(self._row(answer)) + "\n" for answer in answers).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                _drop_unfinished_line(file)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SteerError(f"cannot write {path}: {error.strerror}") from error

    def _row(self, answer: A) -> dict[str, Any]:
        values = {name: _plain(value) for name, value in asdict(answer).items()}  # type: ignore[call-overload]
        digests = zip(DIGESTS, (self.model, self._asked(answer.key), self.how), strict=True)
        return {"way": self.name, "question": self.questions[answer.key].question, **values, **dict(digests)}

    def _asked(self, key: str) -> str:
        """A question's digest; its pictures are read once, and only by the process that needs it."""
        if key not in self._digests:
            self._digests[key] = _question_digest(self.questions[key])
        return self._digests[key]

    def _rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        if self.folder.exists() and not self.folder.is_dir():
            raise SteerError(f"{self.folder} is a file; answers are kept in a folder, give another")
        for path in sorted(self.folder.glob(PATTERN)):
            try:
                whole, newline, _ = path.read_bytes().rpartition(b"\n")
            except OSError as error:
                raise SteerError(f"cannot read {path}: {error.strerror}") from error
            for row, where in json_rows((whole + newline).splitlines(), path):
                if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("key", *DIGESTS)):
                    raise _no_answer(where)
                yield row, where

    def _other(self, where: str, what: str) -> SteerError:
        return SteerError(
            f"{where} is an answer of {what}: give another folder for this run, or delete {self.folder} to ask anew"
        )


def way_digest(method: Method | None, **options: Any) -> str:
    """Of everything but model and questions that an answer depends on, save the hardware."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    if method is not None:
        digest.update(f"{type(method).__qualname__} {json.dumps(encode_config(method), sort_keys=True)}".encode())
        for name, tensor in sorted(method.tensors.items()):
            flat = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {flat.dtype} {tuple(flat.shape)} ".encode() + picture_bytes(flat))
    return digest.hexdigest()


def _question_digest(example: Example) -> str:
    """Of a question's words, what is right, and its pictures."""
    digest = hashlib.sha256(f"{example.question}\0{example.answer}\0".encode())
    images: Any = example.images
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


def _drop_unfinished_line(file: Any) -> None:
    """Whatever a cut left after the last whole line."""
    end = file.seek(0, os.SEEK_END)
    size = min(end, 2**20)
    file.seek(end - size)
    tail = file.read(size)
    if tail and not tail.endswith(b"\n"):
        file.truncate(end - size + tail.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _plain(value: Any) -> Any:
    """As JSON has it, which knows no infinity."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _answer(row: dict[str, Any], kind: type[A], where: str) -> A:
    values = {}
    for name, hint in typing.get_type_hints(kind).items():
        if name not in row:
            raise _no_answer(where)
        value, wanted = row[name], _types(hint)
        if float in wanted and isinstance(value, int | str) and not isinstance(value, bool):
            try:
                value = float(value)
            except ValueError:
                raise _no_answer(where) from None
        if type(value) not in wanted:
            raise _no_answer(where)
        values[name] = value
    return kind(**values)


def _types(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _no_answer(where: str) -> FileFormatError:
    return FileFormatError(f"{where} is no answer that steer kept; give another folder, or remove that line")
