"""Labelled pictures as the commands are given them: which, of which classes, and how many of each."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SteerError, unknown_name
from ..examples import Example
from ._data import ZOO, Role
from ._output import say
from ._settings import parse
from ._sources import OF_FILES, OF_ZOO, located


def classes_option(which: str) -> Any:
    """The option `--classes`; to be put into an `Annotated`."""
    return typer.Option(
        "--classes", metavar="NAMES", help=f"Class names: {which}; a,b,c or a file with one on each line."
    )


Classes = Annotated[str | None, classes_option("labelled pictures of these only")]
Read = Annotated[
    list[str] | None,
    typer.Option(
        "--read",
        metavar="KEY=VALUE",
        help="How labelled pictures are read: image, label, split, root, names; repeatable.",
    ),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read, and name them.")
]

# How the library writes what is an option here.
_SPELLINGS = {
    "skip_unreadable=True": "--skip-unreadable",
    "allow_fewer=True": "--allow-fewer",
    "names=[...]": "--read names=FILE",
    "names={folder: name, ...}": "--read names=FILE",
    "say split='": "say --read split='",
    "image=..., label=...": "--read image=... --read label=...",
}


@dataclass(frozen=True)
class Wanted:
    """What the user said about labelled pictures, whatever they are for.

    Attributes:
        classes: `--classes`.
        read: `--read`.
        skip_unreadable: `--skip-unreadable`.
        limit: `--limit`, drawn at random from all that there are.
        seed: of that, and of the zoo's pictures.
    """

    classes: str | None
    read: Sequence[str]
    skip_unreadable: bool
    limit: int | None
    seed: int

    def of(self, source: str, role: Role, **more: Any) -> tuple[list[Example], list[str]]:
        """The pictures, and the names of the classes that there are, sorted, or in the order of `--classes`.

        Args:
            source: as `--data`.
            role: what they are for.
            more: arguments of reading that the user did not give, taken for the zoo only.

        Raises:
            SteerError: nothing there, pictures that cannot be read, classes without pictures.
        """
        from ..data import classes_of, read_labelled

        with _spelt(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            place, how = self._located(source, role, more)
            found = read_labelled(place, **how, skip_unreadable=self.skip_unreadable)
        for one in said:
            say(str(one.message))
        names = classes_of(found)
        if self.classes is not None:
            wanted = class_names(self.classes)
            for name in wanted:
                if name not in names:
                    raise unknown_name("class", name, names, f"{source} has no picture of it")
            names, found = wanted, [one for one in found if one.answer in wanted]
        if self.limit is not None and self.limit < len(found):
            kept = random.Random(f"{self.seed} limit").sample(range(len(found)), self.limit)
            found = [found[place] for place in sorted(kept)]
        return found, names

    def for_dev(self) -> Wanted:
        """The same for `--dev`: all that it has, and not the split that was asked for of `--data`."""
        return replace(self, classes=None, limit=None, read=[one for one in self.read if not one.startswith("split=")])

    def place(self, source: str, role: Role) -> object:
        """The file or folder that a source's pictures are in, and the split; something else for every other source."""
        if source.startswith(ZOO):
            return object()
        place, how = self._located(source, role, {})
        return (place.resolve(), how.get("split")) if isinstance(place, Path) else object()

    def _located(self, source: str, role: Role, more: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        of_zoo = source.startswith(ZOO)
        given = parse(self.read, OF_ZOO if of_zoo else OF_FILES, "--read", f"way of reading {source}")
        return located(source, role, {**more, **given} if of_zoo else given, self.seed)


def class_names(given: str) -> list[str]:
    """Names with commas between them, or those in a file: one on each line, or a JSON list.

    Raises:
        SteerError: there is no such file, it holds no names, or a name comes twice.
    """
    path = Path(given)
    if path.suffix in (".txt", ".json") or (len(given) < 256 and path.is_file()):
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text) if path.suffix == ".json" else text.splitlines()
        except OSError as error:
            raise SteerError(f"--classes: cannot read {given}: {error.strerror}") from error
        except ValueError as error:
            raise SteerError(f"--classes: {given} is not {path.suffix or 'text'}: {error}") from error
    else:
        found = given.split(",")
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise SteerError(f"--classes: {given} holds no list of names")
    names = [one.strip() for one in found if one.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise SteerError(f"--classes {given}: " + (f"{', '.join(twice)} more than once" if twice else "no names"))
    return names


def drawn(found: Sequence[Example], shots: int, seed: int, allow_fewer: bool) -> list[Example]:
    """So many pictures of each class."""
    from ..data import few_shot

    with _spelt():
        return few_shot(found, shots, seed, allow_fewer=allow_fewer)


def refuse(method: str, reads: str, given: dict[str, Any]) -> None:
    """Raise where an option was given that a method of this kind has no use for."""
    kinds = {"examples": "questions with answers", "labelled": "labelled pictures"}
    for option, value in given.items():
        if value not in (None, False, [], 0):
            raise SteerError(f"{method} reads {kinds[reads]}, so {option} says nothing to it; leave it out")


@contextmanager
def _spelt() -> Iterator[None]:
    """Errors from inside name options as the command line does."""
    try:
        yield
    except SteerError as error:
        text = str(error)
        for theirs, ours in _SPELLINGS.items():
            text = text.replace(theirs, ours)
        if text == str(error):
            raise
        raise type(error)(text) from error
