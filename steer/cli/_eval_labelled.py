"""`steer eval` on labelled pictures: hand-written prompts first, then each saved method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SteerError
from ._output import print_json, print_table

if TYPE_CHECKING:
    from .._accuracy import Row
    from .._classifying import Classifier
    from ..examples import Example


@dataclass(frozen=True)
class BaseNew:
    """How one way did on the classes that methods are fitted on, and on the others.

    Attributes:
        name: of the way.
        base: on pictures of the base classes, among these.
        new: the same of the new ones; None for a way that has nothing to say about other classes.
        why_not: and why.
    """

    name: str
    base: Row
    new: Row | None
    why_not: str | None = None

    @property
    def harmonic(self) -> float | None:
        """Of the two accuracies."""
        from .._accuracy import harmonic_mean

        return None if self.new is None else harmonic_mean(self.base.accuracy, self.new.accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        new = None if self.new is None else self.new.to_dict()
        found = {"name": self.name, "base": self.base.to_dict(), "new": new, "harmonic_mean": self.harmonic}
        return found if self.why_not is None else {**found, "why_not": self.why_not}


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        examples: labelled pictures.
        classes: between which is decided.
        base_new: halve the classes, and measure each half among itself.
        batch_size: pictures in one forward.
    """

    examples: Sequence[Example]
    classes: Sequence[str]
    base_new: bool
    batch_size: int

    def halves(self) -> Iterator[tuple[list[str], list[Example]]]:
        """Each half of the classes with its pictures.

        Raises:
            SteerError: there are no two halves, or no pictures of one.
        """
        from ..data import split_classes

        for half in split_classes(self.classes):
            mine = [one for one in self.examples if one.answer in half]
            if not mine:
                raise SteerError(f"there is no picture of any of {', '.join(half[:5])}; raise --limit")
            yield half, mine

    def measure(self, name: str, way: Classifier, first: Any) -> Row | BaseNew:
        """One way; `first` is called once it has classes."""
        from .._classifying import measure, take

        if not self.base_new:
            take(way, self.classes)
            first()
            return measure(name, way, self.examples, self.classes, self.batch_size)
        (base, known), (new, others) = self.halves()
        fitted = set(getattr(way, "fitted_classes", ())) & set(new)
        if fitted:
            raise SteerError(
                f"{name} was fitted on {len(fitted)} of the {len(new)} new classes, such as {min(fitted)!r}: they are "
                "not new to it. Fit it on the others: steer fit ... --base"
            )
        take(way, base)
        first()
        here = measure(name, way, known, base, self.batch_size)
        try:
            take(way, new)
        except SteerError as error:
            return BaseNew(name, here, None, str(error))
        return BaseNew(name, here, measure(name, way, others, new, self.batch_size))


def rows(model: Any, processor: Any, saved: Sequence[str], templates: Sequence[str], asked: Asked) -> list[Any]:
    """A `Row` or a `BaseNew` for each way: the model alone with each list of templates, then the methods."""
    from .._classifying import TEMPLATE, HandWritten
    from ..fitting import track
    from ..registry import load
    from ..two_stream import TwoStream

    stream = TwoStream(model, processor)
    methods: dict[str, Any] = {path: load(path, model) for path in saved}
    own = (tuple(getattr(method, "templates", ())) for method in methods.values())
    by_hand = dict.fromkeys(one for one in (tuple(templates or (TEMPLATE,)), *own) if one)
    ways: list[tuple[str, Any, Any]] = [(_alone(one), HandWritten(stream, one), lambda: None) for one in by_hand]
    names = [method.name for method in methods.values()]
    for path, method in methods.items():
        name = method.name if names.count(method.name) == 1 else f"{method.name} ({path})"
        ways.append((name, method, lambda method=method: method.bind(model, processor)))
    return [asked.measure(*way) for way in track(ways, "evaluating")]


def report(record: dict[str, Any], found: Sequence[Any], asked: Asked, json: bool) -> None:
    """Print what was measured."""
    if json:
        print_json({**record, "rows": [row.to_dict() for row in found]})
        return
    if asked.base_new:
        print_table(("", "base", "95 % interval", "new", "95 % interval", "harmonic mean"), map(_two_cells, found))
        sizes = [f"{len(mine)} pictures of {len(half)}" for half, mine in asked.halves()]
        print(f"base: {sizes[0]} classes; new: {sizes[1]}; each among its own classes; interval: Wilson's")
        for row in found:
            if row.why_not is not None:
                print(f"{row.name}: nothing on new classes: {row.why_not}")
        return
    columns = ("", "accuracy", "95 % interval", "macro", "calibration error", "ms / picture")
    print_table(columns, map(_cells, found))
    seen = len({one.answer for one in asked.examples})
    print(f"accuracy: on {len(asked.examples)} pictures, of {len(asked.classes)} classes; interval: Wilson's")
    print(f"macro: the mean of the accuracies of {seen} classes; calibration error: expected, in 15 bins of confidence")


def answers(found: Sequence[Any], asked: Asked) -> list[dict[str, Any]]:
    """By picture: what it is of, what each way said and how likely it said that was."""
    parts = [asked.examples] if not asked.base_new else [mine for _, mine in asked.halves()]
    made = []
    for number, examples in enumerate(parts):
        mine = [(row.base, row.new)[number] if asked.base_new else row for row in found]
        said = {row.name: (row.labels, row.chances.max(-1).values.tolist()) for row in mine if row is not None}
        for i, one in enumerate(examples):
            each = {name: {"class": labels[i], "probability": sure[i]} for name, (labels, sure) in said.items()}
            made.append({"picture": _where(one), "answer": one.answer, "said": each})
    return made


def _where(example: Example) -> str | None:
    """The file of its picture, if it is one."""
    from pathlib import Path

    sources = getattr(example.images, "sources", (None,))
    return str(sources[0]) if isinstance(sources[0], Path) else None


def _alone(templates: Sequence[str]) -> str:
    return "zero-shot, " + (repr(templates[0]) if len(templates) == 1 else f"{len(templates)} templates")


def _cells(row: Row) -> tuple[str, ...]:
    return (row.name, *_accuracy(row), f"{row.macro:.3f}", f"{row.calibration_error:.3f}", f"{row.ms:.1f}")


def _two_cells(row: BaseNew) -> tuple[str, ...]:
    new = ("-", "-") if row.new is None else _accuracy(row.new)
    return (row.name, *_accuracy(row.base), *new, "-" if row.harmonic is None else f"{row.harmonic:.3f}")


def _accuracy(row: Row) -> tuple[str, str]:
    low, high = row.interval
    return f"{row.accuracy:.3f}", f"{low:.3f} to {high:.3f}"
