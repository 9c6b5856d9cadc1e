"""The application as a tree, walked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from steer.cli import build_app


def leaves(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that lead to it; those of a group after the group's."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*before, name))
        else:
            yield (*before, name), command


TOP = typer.main.get_command(build_app())
COMMANDS: dict[str, Any] = {" ".join(words): command for words, command in leaves(TOP)}


def options(command: Any) -> list[Any]:
    """What a command takes by name, without `--help`."""
    return [one for one in command.params if one.param_type_name == "option" and one.name != "help"]


def kind(option: Any) -> str:
    """What a value of an option is, whether one is taken or several."""
    found = getattr(option, "type_descriptor", None)
    text = str(option.type.name if found is None else found.annotation).lower()
    return next((one for one in ("bool", "int", "float", "path") if one in text), "text")
