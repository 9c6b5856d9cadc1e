"""Putting the commands together, and turning every error into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from .._plugins import Source, call_alone, manager, sources, warn_broken
from ..errors import PluginError, SteerError
from . import bench, check, demo, eval, fit, fold, generate, inspect, look, memory, methods, predict, profile
from ._output import say

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def build_app() -> typer.Typer:
    """The `steer` application: the built-in commands, then those of every plugin."""
    app = typer.Typer(
        name="steer",
        help="Adapt any Hugging Face vision-language model without touching its weights.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Exit codes: 0 all is well, 1 an error, 2 wrong usage, 3 a check failed.",
    )
    app.callback()(_options)
    for module in (inspect, check, methods, demo, fit, generate, predict, eval, profile, look, fold, bench):
        app.command(module.__name__.rpartition(".")[2])(module.command)
    app.add_typer(memory.app, name="memory")
    for name, source in sources(manager()).items():
        _add_plugin_commands(app, name, source)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always leaves through `SystemExit`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted before and after the command's name: one finds out that one needs it after typing the whole line.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        build_app()(words, prog_name="steer")
    except KeyboardInterrupt:
        say("interrupted")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, SteerError)
        kind = "" if expected else f"{type(error).__name__}: "
        say(f"{kind}{error}" + ("" if expected else " (--debug shows where)"))
        raise SystemExit(EXIT_ERROR) from None


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
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
