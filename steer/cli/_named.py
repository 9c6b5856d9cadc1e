"""Methods as a command line names them: saved ones by their folders, others by their names and `--config`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SteerError, unknown_name

if TYPE_CHECKING:
    from ..method import Method


def methods_of(model: Any, named: Sequence[str], config: Sequence[str], reads: str = "examples") -> dict[str, Method]:
    """The methods by what the user wrote: saved ones, and such as need no fitting by their names and `--config`.

    Raises:
        SteerError: there is no such folder or method, a setting that it does not have, it must be fitted first, or it
            is for something else than `reads`.
    """
    from ..registry import create, load, method_class
    from ..session import map_of
    from ._settings import config_hints, parse

    by_name = [one for one in named if _is_name(one)]
    if config and not by_name:
        raise SteerError("--config is for methods that --method names, and it names none; folders have their own")
    found: dict[str, Method] = {}
    for one in named:
        if one not in by_name:
            _check_saved(one)
            found[one] = load(one, model)
        else:
            what = f"configuration field of method {one!r}"
            settings = list(_settings_of(one, config, len(set(by_name)) == 1))
            found[one] = create(one, **parse(settings, config_hints(method_class(one)), "--config", what))
            found[one].interventions(map_of(model))  # one that must be fitted says so now, not after an hour
        if found[one].reads != reads:
            raise SteerError(f"{one} {_DOES[found[one].reads]}; leave it out")
    unused = [pair for pair in config if "." in pair.partition("=")[0] and pair.partition(".")[0] not in by_name]
    if unused:
        raise unknown_name("method of --config", unused[0].partition(".")[0], by_name)
    return found


def reads_of(one: str) -> str:
    """What a method that the user named is measured on: `examples` or `labelled`.

    Raises:
        SteerError: there is no such folder or method.
    """
    from ..registry import load, method_class

    if _is_name(one):
        return method_class(one).reads
    _check_saved(one)
    return load(one).reads


_DOES = {
    "examples": "answers questions and names no classes of pictures",
    "labelled": "names the classes of pictures and answers no questions",
}


def _is_name(one: str) -> bool:
    from ..registry import methods

    return one in methods() and not Path(one).is_dir()


def _check_saved(one: str) -> None:
    from ..registry import methods

    if "/" not in one and not Path(one).exists():
        raise unknown_name("folder or method", one, methods(), "a saved method is given by its folder or hub id")


def _settings_of(name: str, config: Sequence[str], alone: bool) -> Iterator[str]:
    """`key=value` for the one method given by name, `name.key=value` for one of several."""
    for pair in config:
        key = pair.partition("=")[0]
        if "." in key:
            if key.partition(".")[0] == name:
                yield pair.partition(".")[2]
        elif alone:
            yield pair
        else:
            raise SteerError(f"--config {pair}: several methods are given by name; say which, as in {name}.{pair}")
