"""`key=value` on the command line, read as the annotation of what it is for."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._config import _decode, _Misfit, config_fields
from ..errors import InterventionError, SteerError, unknown_name

if TYPE_CHECKING:
    from ..method import Method

# What `steer fit` gives to `fit` by options of its own.
OWN = ("seed", "dev", "demonstrations", "folder", "progress", "augment", "sentences")
# As Python writes them: a user who knows the library will.
CONSTANTS = {"None": "null", "True": "true", "False": "false"}


def parse(pairs: Sequence[str], hints: Mapping[str, Any] | None, option: str, what: str) -> dict[str, Any]:
    """Values by key.

    Args:
        pairs: of the form `key=value`; a value is JSON, a bare word, or items with commas between them.
        hints: the keys that there are, with their annotations; None where any key will do.
        option: which option they were given to, for errors.
        what: the kind of thing that a key names, for errors.

    Raises:
        SteerError: a pair without `=`, a key that does not exist, or a value that the annotation does not allow.
    """
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise SteerError(f"{option} takes key=value, got {pair!r}")
        if hints is not None and key not in hints:
            raise unknown_name(what, key, hints)
        found[key] = _value(text, hints[key] if hints is not None else Any, f"{option} {pair}")
    return found


def config_hints(cls: type[Method]) -> dict[str, Any]:
    """The configuration fields of a method, with their annotations."""
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in config_fields(cls)}


def fit_hints(cls: type[Method]) -> dict[str, Any] | None:
    """What a method's `fit` takes besides what the command gives it, with annotations; None where it takes anything."""
    parameters = inspect.signature(cls.fit).parameters.values()
    hints = _hints(cls.fit)
    named = {p.name: hints.get(p.name, Any) for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in OWN}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return named
    return None if cls.fit_options is None else {**named, **typing.get_type_hints(cls.fit_options)}


def given_by_option(cls: type[Method], name: str, text: str) -> Any:
    """The value of an option that is named as a keyword of the method's `fit`, read as the annotation there says."""
    return _value(text, _hints(cls.fit).get(name, Any), f"--{name}")


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # an annotation that is imported for type checkers only
        return {}


def _value(text: str, hint: Any, where: str) -> Any:
    for reading in _readings(text):
        try:
            return _decode(reading, hint)
        except _Misfit:
            continue
    wanted = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
    raise InterventionError(f"{where}: the value must be {wanted}, got {text!r}")


def _readings(text: str) -> Iterator[Any]:
    """What a value can mean, the likeliest first."""
    for form in (CONSTANTS.get(text, text), None, f"[{text}]", json.dumps(text.split(","))):
        try:
            yield text if form is None else json.loads(form)
        except ValueError:
            continue
