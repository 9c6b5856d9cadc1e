"""One table from (operation, device type) to the function that does it.

An operation is written twice: in torch, its reference, which runs anywhere and says what is meant, and in Triton
(`fused/`), which is used on CUDA. A third party may put its own in for a device (`register`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

ANY = "any"
CHOICES = ("auto", "torch", "triton")
_TABLE: dict[tuple[str, str], Callable[..., Any]] = {}
_ADOPTED: dict[tuple[str, str], Callable[..., Any]] = {}
_FOUND: dict[str, Callable[..., Any] | None] = {}
_choice = os.environ.get("STEER_KERNELS", "auto")
if _choice not in CHOICES:
    raise ValueError(f"STEER_KERNELS is one of {', '.join(CHOICES)}; got {_choice!r}")

F = TypeVar("F", bound=Callable[..., Any])


def register(name: str, function: Callable[..., Any], device_type: str = ANY) -> Callable[..., Any]:
    """Register an implementation of `name`; `device_type` "any" is the torch reference that every device can run."""
    _TABLE[name, device_type] = function
    return function


def adopt(found: Mapping[tuple[str, str], Callable[..., Any]]) -> None:
    """Use these, by operation and device type, before anything else, instead of those that were adopted before."""
    _ADOPTED.clear()
    _ADOPTED.update(found)


def kernel(reference: F) -> F:
    """Make a torch reference an operation: the function that is returned runs the best one for its first argument.

    The reference itself stays reachable as the attribute `reference`.
    """
    name = reference.__name__
    first = next(iter(inspect.signature(reference).parameters))
    register(name, reference)

    @functools.wraps(reference)
    def dispatched(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs[first]
        return best(name, x.device.type)(*args, **kwargs)

    dispatched.reference = reference  # type: ignore[attr-defined]
    return cast(F, dispatched)


def best(name: str, device_type: str) -> Callable[..., Any]:
    """The implementation of `name` for `device_type`: a third party's, Triton on CUDA, else the torch reference.

    Raises:
        KeyError: nothing of that name is registered.
    """
    reference = _TABLE[name, ANY]
    if _choice == "torch":
        return reference
    own = _ADOPTED.get((name, device_type)) or _TABLE.get((name, device_type))
    if own is not None:
        return own
    if device_type == "cuda" or _choice == "triton":
        # Found here only where nobody called `ready`: code that is being compiled cannot import.
        found = _FOUND[name] if name in _FOUND else _find(name)
        return found or reference
    return reference


@contextmanager
def prefer(choice: str) -> Iterator[None]:
    """Within the block, "torch" or "triton" wherever there is a choice; "auto" is the rule of `best`.

    The environment variable STEER_KERNELS does the same for a whole program. On a CPU, Triton needs its interpreter
    (TRITON_INTERPRET=1 before triton is imported). A session keeps what it chose when its tensors first came to a
    device.

    Raises:
        ValueError: an unknown choice.
    """
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"kernels are chosen by one of {', '.join(CHOICES)}; got {choice!r}")
    before, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = before


def ready(device_type: str) -> None:
    """Import what `best` may choose for a device, so that it only looks things up from then on."""
    if device_type == "cuda" or _choice == "triton":
        for name, device in list(_TABLE):
            if device == ANY and name not in _FOUND:
                _find(name)


def _find(name: str) -> Callable[..., Any] | None:
    """The Triton implementation, or None where Triton is not installed or has none of that name."""
    global _warned
    try:
        importlib.import_module("triton")
    except ImportError as error:
        if not _warned:
            warnings.warn(f"Triton cannot be imported ({error}); steer's kernels run in plain torch", stacklevel=3)
        _warned, _FOUND[name] = True, None
        return None
    module = importlib.import_module(".fused", __package__)
    _FOUND[name] = module.find(name)
    return _FOUND[name]


_warned = False
