"""Putting the commands together, and turning every error into one line and an exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
import typer.main

from .. import __version__
from .._plugins import Source, call_alone, manager, sources, warn_broken
from ..errors import PluginError
from . import (
    bench,
    check,
    demo,
    eval,
    fit,
    fold,
    generate,
    inspect,
    look,
    memory,
    methods,
    new_plugin,
    predict,
    profile,
)
from ._errors import EXIT_INTERRUPTED, told
from ._help import HELP, in_few_columns
from ._output import say
from ._shells import InstallCompletion, ShowCompletion, know_shells

# Commands by what one wants; `--help` shows them so.
PANELS: dict[str, tuple[ModuleType, ...]] = {
    "Look": (demo, methods, inspect, look),
    "Learn": (fit, memory),
    "Use": (generate, predict, fold),
    "Measure": (eval, profile, check, bench),
    "Make": (new_plugin,),
}
_FORMAT = warnings.formatwarning
# Options whose value may be empty: what is said to a model, and how.
WORDS = ("--prompt", "--template", "--wording")


def build_app() -> typer.Typer:
    """The `steer` application: the built-in commands, then those of every plugin."""
    app = typer.Typer(
        name="steer",
        help="Adapt any Hugging Face vision-language model without touching its weights.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": HELP},
        epilog="Exit codes: 0 all is well, 1 an error, 2 wrong usage, 3 a check failed, 130 interrupted.",
    )
    app.callback()(_options)
    for panel, modules in PANELS.items():
        for module in modules:
            name = module.__name__.rpartition(".")[2].replace("_", "-")
            if hasattr(module, "app"):
                app.add_typer(module.app, name=name, rich_help_panel=panel)
            else:
                app.command(name, rich_help_panel=panel)(module.command)
    for name, source in sources(manager()).items():
        _add_plugin_commands(app, name, source)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always leaves through `SystemExit`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted before and after the command's name: one finds out that one needs it after typing the whole line.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[-1:] == ["-h"]:  # not an option, which would cost every page of help a column
        words[-1:] = HELP
    warnings.formatwarning = _one_line
    try:
        _check_empty(words)
        know_shells()
        command = typer.main.get_command(build_app())
        in_few_columns(command)
        # Not standalone: typer would draw boxes around errors, which are one line here.
        code = command.main(words, prog_name="steer", standalone_mode=False)
    except Exception as error:
        if debug:
            raise
        message, code = told(error)
        if message:
            say(message)
        raise SystemExit(code) from None
    if code == EXIT_INTERRUPTED:
        say("interrupted")
    raise SystemExit(code or 0)


def _one_line(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    """What steer warns of, as every other line of ours; what others warn of, as it was."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"steer: {' '.join(str(message).split())}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _check_empty(words: Sequence[str]) -> None:
    """Raise where an option that is not words to a model is given nothing: an unset variable of the shell.

    An empty path is the current folder to Python, and would be written into.
    """
    split = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in pairwise(split):
        if not value and option.startswith("--") and option not in (*WORDS, "--"):
            raise typer.BadParameter("it is empty; is a variable of the shell unset?", param_hint=option)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole trace of an error; may stand anywhere.")
    ] = False,
    show_completion: ShowCompletion = None,
    install_completion: InstallCompletion = None,
) -> None:
    """Adapt any Hugging Face vision-language model without touching its weights."""


def _add_plugin_commands(app: typer.Typer, name: str, source: Source) -> None:
    before_commands, before_groups = list(app.registered_commands), list(app.registered_groups)
    taken = _names(app)
    try:
        call_alone(manager(), name, "steer_add_commands", app=app)
        names = _names(app)
        clash = sorted({name for name in names if names.count(name) > 1})
        if clash:
            raise PluginError(f"the command {clash[0]!r} exists already; there are {', '.join(taken)}")
    except (Exception, SystemExit) as error:
        app.registered_commands[:], app.registered_groups[:] = before_commands, before_groups
        warn_broken(source, "in steer_add_commands", error)


def _names(app: typer.Typer) -> list[str]:
    named: list[tuple[str | None, object]] = [(info.name, info.callback) for info in app.registered_commands]
    named += [(info.name, None) for info in app.registered_groups]
    return [name or getattr(callback, "__name__", "").replace("_", "-") for name, callback in named]
