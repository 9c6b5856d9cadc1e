"""Checks that a method does something, and that it does nothing where it starts."""

from __future__ import annotations

from typing import Any

from .._bench import Check, Inputs
from ..errors import NeverFiredError
from ..method import Method
from ._case import Case, starting


def check_fires(method: Method, model: Any, inputs: Inputs) -> Check:
    """Check that each intervention touches a row, and that the output moves: the opposite of a test that says nothing.

    Args:
        method: one that acts; a `Learned` one may come without tensors.
        model: in eval mode.
        inputs: for `model(**inputs)`.

    Returns:
        How far the output moved.

    Raises:
        AssertionError: something never fired, or nothing moved.
    """
    return fires(Case(method, model, inputs))


def fires(case: Case) -> Check:
    """Each intervention touches a row and the output moves."""
    try:
        with case.attached(strict=True):
            outputs = case.outputs()
    except NeverFiredError as error:
        raise AssertionError(f"{case.method.name}: {error}") from error
    return Check("fires", "", "pass", f"the output moves by {case.check_moved(outputs):.1e} of its size")


def check_identity(method: Method, model: Any, inputs: Inputs) -> Check:
    """Check that the model with the method attached gives what it gives without, bit for bit.

    Args:
        method: a `Learned` one is tried with the tensors that its fit starts from; any other as it is: give it the
            configuration under which it should do nothing.
        model: in eval mode.
        inputs: for `model(**inputs)`.

    Returns:
        The check, passed.

    Raises:
        AssertionError: some bit differs; the message has by how much.
    """
    return identity(Case(method, model, inputs))


def identity(case: Case) -> Check:
    """A session where the method starts changes no bit."""
    found = case.exact("identity", "", case.steered(starting(case.method, case.map)))
    if found.status == "fail":
        raise AssertionError(f"{case.method.name} is not the identity where it starts: the output {found.detail}")
    return found
