"""The check that nothing is left of a session."""

from __future__ import annotations

from typing import Any

from .._bench import Check, Inputs, state
from ..method import Method
from ._case import Case, same_tensors


class _Planned(Exception):
    """The error inside a session that is made on purpose."""


class _Interrupt(KeyboardInterrupt):
    """As if by Ctrl-C, and not to be taken for the user's own."""


def check_restores(method: Method, model: Any, inputs: Inputs) -> Check:
    """Check that nothing is left of a session: after its end, after an error, and after an interrupted forward.

    Outputs are compared bit for bit; hooks, configuration, attention functions and the weights' marks of being written
    to are what they were, and so are the method's own tensors.

    Args:
        method: one that acts; a `Learned` one may come without tensors.
        model: in eval mode.
        inputs: for `model(**inputs)`.

    Returns:
        The check, passed.

    Raises:
        AssertionError: something is left, or the method changed nothing; the message says what and after what.
    """
    return restores(Case(method, model, inputs))


def restores(case: Case) -> Check:
    """Nothing is left of a session."""
    before, learned = state(case.model), {name: one.clone() for name, one in case.method.tensors.items()}
    for after, end in (("a session", None), ("an error", _Planned), ("an interrupt", _Interrupt)):
        _session(case, end)
        for found in (case.same_state("restores", before), case.exact("restores", "", case.outputs())):
            if found.status == "fail":
                raise AssertionError(f"{case.method.name} after {after}: {found.detail}")
        if not same_tensors(learned, case.method.tensors):
            raise AssertionError(f"{case.method.name} after {after}: its own tensors are no longer what they were")
    return Check("restores", "", "pass", "after a session, an error and an interrupt: every bit the same")


def _session(case: Case, end: type[BaseException] | None) -> None:
    """One session that ends well, by an error behind the outputs, or in the middle of a forward."""
    handle = None
    if end is _Interrupt:
        layers = next(iter(case.map.towers.values())).layers
        handle = case.model.get_submodule(layers[len(layers) // 2].path).register_forward_pre_hook(_interrupt)
    try:
        with case.attached():
            case.check_moved(case.outputs())
            if end is _Planned:
                raise _Planned
    except (_Planned, _Interrupt):
        pass
    finally:
        if handle is not None:
            handle.remove()


def _interrupt(*_: Any) -> None:
    raise _Interrupt
