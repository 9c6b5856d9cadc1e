"""One table from (operation, device type) to the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TABLE: dict[tuple[str, str], Callable[..., Any]] = {}
_REFERENCE = "any"


def register(name: str, function: Callable[..., Any], device_type: str = _REFERENCE) -> Callable[..., Any]:
    """Register an implementation of `name`; `device_type` "any" is the torch reference that every device can run."""
    _TABLE[name, device_type] = function
    return function


def best(name: str, device_type: str) -> Callable[..., Any]:
    """The implementation of `name` for `device_type`, or its reference.

    Raises:
        KeyError: nothing of that name is registered.
    """
    return _TABLE.get((name, device_type)) or _TABLE[name, _REFERENCE]
