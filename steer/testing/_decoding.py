"""One prompt, one answer: alone and in a batch, padded, with a cache and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .._bench import Check, Inputs, distance
from ..errors import SteerError
from ..method import Method
from . import _rows
from ._case import Case

TOKENS = 4
Scores = list[torch.Tensor]
Ways = dict[str, Callable[[], Scores]]


def check_decoding(method: Method, model: Any, inputs: Inputs) -> Check:
    """Check that the steered model gives a prompt the same scores however it is run.

    They are those of four tokens, written with a cache and without, padded (on the left, or behind what an encoder
    reads), and in a batch beside a longer prompt; a model that reads no words is run in the first two ways only. Of a
    model that writes nothing they are what it gives for each row, alone and beside other words and another picture.
    What the model itself cannot do, unsteered, is left out, and the result says so.

    Args:
        method: one that acts; a `Learned` one may come without tensors.
        model: in eval mode.
        inputs: of one prompt, for `model(**inputs)`.

    Returns:
        What was measured; skipped where the model itself can be run in one way only.

    Raises:
        AssertionError: the scores differ, or the method changed nothing.
        SteerError: the inputs hold more than one prompt.
    """
    return decoding(Case(method, model, inputs))


def decoding(case: Case) -> Check:
    """A prompt's scores are the same however it is run."""
    ids = case.inputs.get("input_ids")
    if ids is not None and (ids.ndim != 2 or len(ids) != 1):
        raise SteerError(f"check_decoding takes one prompt, input_ids (1, T); got shape {tuple(ids.shape)}")
    case.check_moved(case.steered())
    ways = _ways_to_write(case) if case.writes else _ways_to_read(case)
    able, left_out = _unsteered(ways, case.tolerance / 2)
    if len(able) < 2:
        return Check("decoding", "", "skip", f"the model itself differs: {', '.join(left_out) or 'it reads no words'}")
    with case.attached():
        found = {name: ways[name]() for name in able}
    first, *others = able
    off = {name: distance(found[name], found[first]) for name in others}
    worst = [f"{name} by {by:.1e}" for name, by in off.items() if by > case.tolerance]
    if worst:
        raise AssertionError(
            f"{case.method.name}: the scores differ from those {first}: {', '.join(worst)} of their size (rounding: "
            f"{case.tolerance:.0e}), and unsteered they do not; are its positions absolute, and its rows independent?"
        )
    not_tried = f"; not tried: {', '.join(left_out)}" if left_out else ""
    return Check("decoding", "", "pass", f"{', '.join(able)}: the same to {max(off.values()):.1e}{not_tried}")


def _unsteered(ways: Ways, tolerance: float) -> tuple[list[str], list[str]]:
    """The ways in which the untouched model gives the same; and the others, each with why."""
    able: list[str] = []
    left_out: list[str] = []
    truth: Scores = []
    for name, way in ways.items():
        try:
            scores = way()
        # Whatever a model raises about a batch, padding or a missing cache that it was not made for.
        except Exception as error:
            left_out.append(f"{name} ({type(error).__name__}: {str(error).partition(chr(10))[0]:.100})")
            continue
        truth = truth or scores
        off = distance(scores, truth)
        if off <= tolerance:
            able.append(name)
        else:
            left_out.append(f"{name} (by {off:.1e} of its scores)")
    return able, left_out


def _ways_to_write(case: Case) -> Ways:
    ways: Ways = {
        "with a cache": lambda: case.write(TOKENS),
        "without a cache": lambda: case.write(TOKENS, use_cache=False),
    }
    if "input_ids" not in case.inputs:
        return ways
    padded = _rows.padded(case.model, case.inputs)
    both = _rows.together(padded, _rows.longer(case.inputs))
    return ways | {"padded": lambda: case.write(TOKENS, padded), "in a batch": lambda: case.write(TOKENS, both)}


def _ways_to_read(case: Case) -> Ways:
    """The first row of those tensors of the output that have a row for each of the batch, and nothing of its others."""
    if "input_ids" not in case.inputs:
        return {}
    both = _rows.together(case.inputs, _rows.another(case.inputs))

    def read(alone: bool) -> Scores:
        pairs = zip(case.run(), case.run(inputs=both), strict=True)
        return [one if alone else two[:1] for one, two in pairs if two.shape == (2, *one.shape[1:])]

    return {"alone": lambda: read(alone=True), "in a batch": lambda: read(alone=False)}
