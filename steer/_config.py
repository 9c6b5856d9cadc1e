"""A method's configuration as JSON and back: plain values only, checked against the field's annotation."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

from .errors import FileFormatError, InterventionError


def config_fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields that make up a method's configuration: those its constructor takes."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def encode_config(method: Any) -> dict[str, Any]:
    """The configuration as plain JSON data; tuples become lists.

    Raises:
        InterventionError: a field holds something JSON cannot; the message names it.
    """
    return {name: _encode(getattr(method, name), name) for name in config_fields(type(method))}


def decode_config(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments from plain JSON data; lists become tuples where the annotation says so.

    Raises:
        FileFormatError: a value is not what the field's annotation asks for.
    """
    hints = typing.get_type_hints(cls)
    decoded = {}
    for name, value in config.items():
        try:
            decoded[name] = _decode(value, hints.get(name, Any))
        except _Misfit as misfit:
            hint = hints[name]
            wanted = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
            raise FileFormatError(
                f"field {name!r} of method {cls.name!r} must be {wanted}, the file has {value!r:.100}"  # type: ignore[attr-defined]
            ) from misfit
    return decoded


class _Misfit(Exception):
    """A value that an annotation does not allow."""


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InterventionError(
                f"field {where!r} is {value}; JSON has no such number, use None or a large finite one"
            )
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InterventionError(f"field {where!r} has the key {key!r}; JSON's keys are strings")
        return {key: _encode(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, range):
        return list(value)
    if isinstance(value, Sequence):
        return [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InterventionError(
        f"field {where!r} holds a {type(value).__name__}, which JSON cannot; "
        "a method's fields are plain values, its tensors belong in `tensors`"
    )


def _decode(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it. Annotations that JSON says nothing about are taken as they are."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(value, arguments)
    if origin is Literal:
        return _accept(value, any(value == choice and type(value) is type(choice) for choice in arguments))
    if hint is None or hint is type(None):
        return _accept(value, value is None)
    if hint is float:
        return float(_accept(value, isinstance(value, int | float) and not isinstance(value, bool)))
    if hint is int:
        return _accept(value, isinstance(value, int) and not isinstance(value, bool))
    if hint in (str, bool):
        return _accept(value, isinstance(value, hint))
    base = origin or hint
    if base is tuple:
        return _decode_tuple(value, arguments)
    if base is dict or base is Mapping:
        _accept(value, isinstance(value, dict))
        item_hint = arguments[1] if len(arguments) == 2 else Any
        return {key: _decode(item, item_hint) for key, item in value.items()}
    if base is list or base is Sequence:
        _accept(value, isinstance(value, list))
        return [_decode(item, arguments[0] if arguments else Any) for item in value]
    return value


def _decode_union(value: Any, choices: tuple[Any, ...]) -> Any:
    # Exact types first, so that 1 stays an int in `float | int`.
    for choice in sorted(choices, key=lambda choice: choice is not type(value)):
        try:
            return _decode(value, choice)
        except _Misfit:
            continue
    raise _Misfit


def _decode_tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    _accept(value, isinstance(value, list))
    if not arguments:
        return tuple(value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(item, arguments[0]) for item in value)
    _accept(value, len(value) == len(arguments))
    return tuple(_decode(item, hint) for item, hint in zip(value, arguments, strict=True))


def _accept(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Misfit
    return value
