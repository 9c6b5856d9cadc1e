"""Help in few columns: what kind of value an option takes is one short word, and nothing for a flag."""

from __future__ import annotations

from typing import Any

import typer

HELP = ["--help"]
WORDS = {"int": "N", "float": "X", "path": "PATH"}


def in_few_columns(command: Any) -> None:
    """Give every option of a command, and of those under it, that has no word of its own the one of its type."""
    for below in getattr(command, "commands", {}).values():
        in_few_columns(below)
    shown = command.get_help_option(typer.Context(command, help_option_names=HELP))
    for option in [*command.params, shown]:
        if option.param_type_name == "option" and option.metavar is None:
            option.metavar = "" if option.is_flag else _word(option)


def _word(option: Any) -> str:
    # Older versions of typer have `type`, a class of click's; newer ones the annotation.
    described = getattr(option, "type_descriptor", None)
    kind = str(option.type.name if described is None else described.annotation).lower()
    return next((word for name, word in WORDS.items() if name in kind), "TEXT")
