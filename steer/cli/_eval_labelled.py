"""`steer eval` on labelled pictures: hand-written prompts first, then each saved method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SteerError
from ._eval_halves import BaseNew
from ._eval_out import Output, names_of
from ._model import is_main_process
from ._output import print_table
from ._several import Several

if TYPE_CHECKING:
    from .._accuracy import Row
    from .._classifying import Classifier
    from ..examples import Example


@dataclass(frozen=True)
class Asked(Several):
    """What is measured.

    Attributes:
        classes: between which is decided.
        base_new: halve the classes, and measure each half among itself.
        batch_size: pictures in one forward.
        model: that is asked.
        folder: where answers are kept as they come, or None.
    """

    classes: Sequence[str]
    base_new: bool
    batch_size: int
    model: Any
    folder: Path | None

    def halves(self) -> Iterator[tuple[list[str], list[int]]]:
        """Each half of the classes with the places of its pictures.

        Raises:
            SteerError: there are no two halves, or no pictures of one.
        """
        from ..data import split_classes

        for half in split_classes(self.classes):
            mine = [place for place, one in enumerate(self.examples) if one.answer in half]
            if not mine:
                raise SteerError(f"there is no picture of any of {', '.join(half[:5])}; raise --limit")
            yield half, mine

    def measure(self, name: str, way: Classifier, first: Any) -> Row | BaseNew:
        """One way; `first` is called once it has classes."""
        from .._classifying import take

        if not self.base_new:
            take(way, self.classes)
            first()
            return self._row(name, way, range(len(self.examples)), self.classes)
        (base, known), (new, others) = self.halves()
        fitted = set(getattr(way, "fitted_classes", ())) & set(new)
        if fitted:
            raise SteerError(
                f"{name} was fitted on {len(fitted)} of the {len(new)} new classes, such as {min(fitted)!r}: they are "
                "not new to it. Fit it on the others: steer fit ... --base"
            )
        take(way, base)
        first()
        here = self._row(name, way, known, base)
        try:
            take(way, new)
        except SteerError as error:
            return BaseNew(name, here, None, str(error))
        return BaseNew(name, here, self._row(name, way, others, new))

    def _row(self, name: str, way: Classifier, places: Sequence[int], classes: Sequence[str]) -> Row:
        from .._classifying import measure

        mine, keys = [self.examples[place] for place in places], list(map(str, places))
        return measure(name, way, mine, classes, self.batch_size, keys=keys, model=self.model, answers=self.folder)


def run(
    processor: Any,
    asked: Asked,
    methods: dict[str, Any],
    templates: Sequence[str],
    record: dict[str, Any],
    output: Output,
) -> None:
    """Measure the model alone with each list of templates, then the methods; print, and write what is to be written."""
    rows = [asked.measure(*way) for way in _ways(asked.model, processor, methods, templates)]
    if not is_main_process():  # all of them have measured by now
        return
    plain = [_plain(row, asked) for row in rows]
    output.print(record, plain)
    if not output.json:
        _tables(rows, asked)
    output.write(record, plain, _said(rows, asked))


def _ways(
    model: Any, processor: Any, methods: dict[str, Any], templates: Sequence[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, what names classes, and what is to be called once it has some."""
    from .._classifying import TEMPLATE, HandWritten
    from ..two_stream import TwoStream

    stream = TwoStream(model, processor)
    own = (tuple(getattr(method, "templates", ())) for method in methods.values())
    by_hand = dict.fromkeys(one for one in (tuple(templates or (TEMPLATE,)), *own) if one)
    for one in by_hand:
        yield _alone(one), HandWritten(stream, one), lambda: None
    for name, method in zip(names_of(methods), methods.values(), strict=True):
        yield name, method, lambda method=method: method.bind(model, processor)


def _plain(row: Row | BaseNew, asked: Asked) -> dict[str, Any]:
    """Plain data of a row: all pictures together, and where there are several sources, each of them."""
    if isinstance(row, BaseNew) or len(asked.sources) == 1:
        return row.to_dict()
    each = [{**row.of(places).to_dict(), "name": source} for source, places in asked.places()]
    return {**row.to_dict(), "by_data": each}


def _tables(found: Sequence[Any], asked: Asked) -> None:
    if asked.base_new:
        print_table(("", "base", "95 % interval", "new", "95 % interval", "harmonic mean"), map(_two_cells, found))
        sizes = [f"{len(mine)} pictures of {len(half)}" for half, mine in asked.halves()]
        print(f"base: {sizes[0]} classes; new: {sizes[1]}; each among its own classes; interval: Wilson's")
        for row in found:
            if row.why_not is not None:
                print(f"{row.name}: nothing on new classes: {row.why_not}")
        return
    columns = ("accuracy", "95 % interval", "macro", "calibration error", "ms / picture")
    if len(asked.sources) == 1:
        print_table(("", *columns), [(row.name, *_cells(row)) for row in found])
    else:
        parts = asked.places() + [("all", list(range(len(asked.examples))))]
        rows = [
            (row.name if i == 0 else "", source, *_cells(row.of(places)))
            for row in found
            for i, (source, places) in enumerate(parts)
        ]
        print_table(("", "data", *columns), rows)
    seen = len({one.answer for one in asked.examples})
    print(f"accuracy: on {len(asked.examples)} pictures, of {len(asked.classes)} classes; interval: Wilson's")
    print(f"macro: the mean of the accuracies of {seen} classes; calibration error: expected, in 15 bins of confidence")


def _said(found: Sequence[Any], asked: Asked) -> list[dict[str, Any]]:
    """By picture: what it is of, what each way said and how likely it said that was."""
    parts = [list(range(len(asked.examples)))] if not asked.base_new else [mine for _, mine in asked.halves()]
    sources = [source for source, mine in asked.sources for _ in mine]
    made = []
    for number, places in enumerate(parts):
        mine = [(row.base, row.new)[number] if asked.base_new else row for row in found]
        rows = {row.name: row.said for row in mine if row is not None}
        for i, place in enumerate(places):
            each = {name: {"class": said[i].label, "probability": said[i].probability} for name, said in rows.items()}
            one = asked.examples[place]
            made.append({"data": sources[place], "picture": _where(one), "answer": one.answer, "said": each})
    return made


def _where(example: Example) -> str | None:
    """The file of its picture, if it is one."""
    sources = getattr(example.images, "sources", (None,))
    return str(sources[0]) if isinstance(sources[0], Path) else None


def _alone(templates: Sequence[str]) -> str:
    return "zero-shot, " + (repr(templates[0]) if len(templates) == 1 else f"{len(templates)} templates")


def _cells(row: Row) -> tuple[str, ...]:
    return (*_accuracy(row), f"{row.macro:.3f}", f"{row.calibration_error:.3f}", f"{row.ms:.1f}")


def _two_cells(row: BaseNew) -> tuple[str, ...]:
    new = ("-", "-") if row.new is None else _accuracy(row.new)
    return (row.name, *_accuracy(row.base), *new, "-" if row.harmonic is None else f"{row.harmonic:.3f}")


def _accuracy(row: Row) -> tuple[str, str]:
    low, high = row.interval
    return f"{row.accuracy:.3f}", f"{low:.3f} to {high:.3f}"
