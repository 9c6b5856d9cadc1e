"""Completion of names in a shell: printed, or installed."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import completion

from ..errors import unknown_name
from ._complete import offer

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def _show(context: typer.Context, option: typer.CallbackParam, shell: str | None) -> str | None:
    return _checked(shell) and completion.show_callback(context, option, shell)


def _install(context: typer.Context, option: typer.CallbackParam, shell: str | None) -> str | None:
    return _checked(shell) and completion.install_callback(context, option, shell)


def _checked(shell: str | None) -> str | None:
    if shell is not None and shell not in SHELLS:
        raise unknown_name("shell", shell, SHELLS)
    return shell


def know_shells() -> None:
    """Tell typer which shells there are; it does so by itself only for options of its own, which guess the shell."""
    completion.get_completion_inspect_parameters()


ShowCompletion = Annotated[
    str | None,
    typer.Option(
        "--show-completion",
        metavar="SHELL",
        help=f"Print what completes names in a shell: {', '.join(SHELLS)}.",
        callback=_show,
        is_eager=True,
        expose_value=False,
        autocompletion=offer(lambda: SHELLS),
    ),
]
InstallCompletion = Annotated[
    str | None,
    typer.Option(
        "--install-completion",
        metavar="SHELL",
        help="Put that into the shell's own settings.",
        callback=_install,
        is_eager=True,
        expose_value=False,
        autocompletion=offer(lambda: SHELLS),
    ),
]
