"""Every check that applies, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .._bench import Check, Inputs
from ..errors import SteerError, unknown_name
from ..method import Method
from ..training import Learned
from ._case import Case
from ._checks import fires, identity
from ._decoding import decoding
from ._learning import learns
from ._restoring import restores
from ._saving import saves


def check(method: Method, model: Any, inputs: Inputs, folder: str | Path, *, skip: Iterable[str] = ()) -> list[Check]:
    """Run every check that applies to a method.

    Those are `fires`, `restores`, `decoding` and `saves`, and of a `Learned` method `identity` and `learns` too.

    Args:
        method: one that acts; a `Learned` one may come without tensors, and gets made-up ones.
        model: in eval mode.
        inputs: of one prompt, for `model(**inputs)`.
        folder: where to save, e.g. pytest's `tmp_path`.
        skip: names of checks that are not run, where the method promises something else.

    Returns:
        What each check measured; those with status `skip` could not be tried on this model.

    Raises:
        AssertionError: some failed; the message has them all.
        UnknownNameError: no check of a name in `skip`.
    """
    case = Case(method, model, inputs)
    jobs: dict[str, Callable[[], Check]] = {
        "fires": lambda: fires(case),
        "identity": lambda: identity(case),
        "restores": lambda: restores(case),
        "decoding": lambda: decoding(case),
        "saves": lambda: saves(case, folder),
        "learns": lambda: learns(case),
    }
    left_out = set(skip)
    for name in left_out - set(jobs):
        raise unknown_name("check", name, jobs)
    if not isinstance(method, Learned):
        left_out |= {"identity", "learns"}
    found, failed = [], []
    for name in jobs:
        if name not in left_out:
            try:
                found.append(jobs[name]())
            except (AssertionError, SteerError) as error:
                failed.append(f"{name}: {error}")
    if failed:
        many = f"{len(failed)} of {len(found) + len(failed)} checks failed on {type(model).__name__}"
        raise AssertionError("\n".join([many, *failed]))
    return found
