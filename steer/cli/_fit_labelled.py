"""`steer fit` on labelled pictures: which are fitted on, and how the method does on them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SteerError
from ._labelled import Wanted, drawn
from ._model import is_main_process
from ._output import print_json, print_table
from ._settings import given_by_option
from ._sources import json_file

if TYPE_CHECKING:
    from ..examples import Example
    from ..method import Method


def of_the_method(cls: type[Method], augment: str | None, sentences: Path | None) -> dict[str, Any]:
    """What `--augment` and `--sentences` give to `fit`.

    Raises:
        SteerError: this method's `fit` takes no such thing; or the file cannot be read.
    """
    made: dict[str, Any] = {}
    takes = inspect.signature(cls.fit).parameters
    for name, value in (("augment", augment), ("sentences", sentences)):
        if value is None:
            continue
        if name not in takes:
            raise SteerError(f"the fit of method {cls.name!r} takes no {name}; leave --{name} out")
        made[name] = given_by_option(cls, name, str(value)) if name == "augment" else json_file(value, f"--{name}")
    return made


def must_learn(method: Any) -> None:
    """Raise for a method that has nothing to fit."""
    if not getattr(method, "learns", True):
        raise SteerError(
            f"method {method.name!r} learns nothing, so there is nothing to fit; `steer eval` measures hand-written "
            "prompts beside every method (--template)"
        )


def pictures(
    wanted: Wanted, data: str, dev: str | None, shots: int | None, allow_fewer: bool, base: bool
) -> tuple[list[Example], list[Example], list[str]]:
    """The pictures to fit on, those to choose by, and the classes of both.

    Raises:
        SteerError: nothing there; too few of a class; pictures to choose by that are of other classes.
    """
    from ..data import split_classes

    found, names = wanted.of(data, "train", **({} if shots is None else {"per_class": shots}))
    if base:
        names = split_classes(names)[0]
        found = [one for one in found if one.answer in names]
    if shots is not None:
        found = drawn(found, shots, wanted.seed, allow_fewer)
    if dev is None:
        return found, [], names
    if wanted.place(data, "train") == wanted.for_dev().place(dev, "dev"):
        raise SteerError(f"--dev and --data are the same pictures, {dev}; choose by others, or leave --dev out")
    held, others = wanted.for_dev().of(dev, "dev")
    unknown = [name for name in others if name not in names]
    if unknown and not base and wanted.classes is None:
        raise SteerError(
            f"{dev} has {len(unknown)} classes that {data} has not, such as {unknown[0]!r}; --classes chooses some"
        )
    held = [one for one in held if one.answer in names]
    if not held:
        raise SteerError(f"{dev} has no picture of any class that is fitted on")
    return found, held, names


def with_classes(cls: type[Method], fields: dict[str, Any], names: list[str], asked: str | None) -> dict[str, Any]:
    """The method's configuration with the classes that it is fitted on, unless the user gave others as a field."""
    if "classes" not in fields:
        return {**fields, "classes": names}
    if asked is not None:
        raise SteerError("--classes and --config classes=... say the same; leave one of them out")
    return fields


def report(
    model: Any,
    processor: Any,
    method: Any,
    fitted_on: list[Example],
    chosen_by: list[Example],
    record: dict[str, Any],
    json: bool,
) -> None:
    """Measure the method beside hand-written prompts, on what it chose by or else on what it was fitted on.

    The processes share the pictures; the first one prints.
    """
    from .._classifying import TEMPLATE, HandWritten, measure
    from ..two_stream import TwoStream

    shown, where = (chosen_by, "dev") if chosen_by else (fitted_on, "fitted on")
    by_hand = HandWritten(TwoStream(model, processor), getattr(method, "templates", None) or (TEMPLATE,))
    after = measure("after", method, shown, method.classes, model=model)
    try:
        before = measure("before", by_hand, shown, method.classes, model=model)
    except SteerError:  # a name for which the method has room, and the words of the prompt leave none
        before = None
    if not is_main_process():
        return
    count = getattr(method, "number_of_parameters", None)
    numbers = count() if count is not None else sum(tensor.numel() for tensor in method.tensors.values())
    if json:
        found = {"before": before and before.to_dict(), "after": after.to_dict(), "numbers": numbers}
        print_json({**record, "classes": list(method.classes), "measured_on": where, **found})
        return
    columns = ("method", "pictures", "classes", f"accuracy before ({where})", "after", "numbers learned", "s to fit")
    counts = str(len(fitted_on)), str(len(method.classes))
    accuracies = f"{before.accuracy:.3f}" if before else "-", f"{after.accuracy:.3f}"
    print_table(columns, [(method.name, *counts, *accuracies, f"{numbers:,}", f"{record['seconds']:.1f}")])
    print(
        f"before: hand-written prompts; dev: {len(chosen_by)} pictures, which the method may have chosen by"
        if chosen_by
        else "before: hand-written prompts; both on the very pictures that were fitted on"
    )
    print("other pictures: `steer eval`")
    print(f"saved: {record['out']}")
