"""What is said of an error, in one line, and the exit code that goes with it."""

from __future__ import annotations

from typing import Any

import typer

from ..errors import SteerError

EXIT_ERROR, EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


def told(error: Exception) -> tuple[str, int]:
    """The line and the exit code; no line where all is said."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
        return "", EXIT_USAGE
    if _is_usage(error):
        return _usage(error), EXIT_USAGE
    if isinstance(error, typer.Abort):
        return "stopped", EXIT_ERROR
    if isinstance(error, SteerError):
        return str(error), EXIT_ERROR
    # A full disk, a folder that is not ours, a name that is too long: the system's no, and no bug.
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{str(error.filename)[:200]}: {error.strerror}", EXIT_ERROR
    return f"{type(error).__name__}: {error} (--debug shows where)", EXIT_ERROR


def _is_usage(error: Any) -> bool:
    """Whether typer refused the words; by what its errors have, since some versions bring a click of their own."""
    return getattr(error, "exit_code", None) == EXIT_USAGE and hasattr(error, "format_message")


def _usage(error: Any) -> str:
    """With the nearest name, where there is one, and where all of them are."""
    context = getattr(error, "ctx", None)
    here = context.command_path if context is not None else "steer"
    near = getattr(error, "possibilities", None)
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        text = f"there is no option {error.option_name}" + (f"; did you mean {near[0]}?" if near else "")
    else:
        text = str(error.format_message()).strip()
        text = text[:1].lower() + text[1:].replace(". Did you mean", "; did you mean")
    return f"{text.rstrip('.')} (`{here} --help` lists what there is)"
