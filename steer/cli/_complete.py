"""What the shell offers where an option takes a name; never raises and never speaks, in the middle of a user's line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable


def offer(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A completion for typer: those of `names()` that begin as the user does; none where they cannot be told."""

    def complete(incomplete: str) -> list[str]:
        try:
            # A plugin that does not load is told of by every command; here it would be written into the line.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return [name for name in names() if name.startswith(incomplete)]
        except Exception:
            return []

    return complete


def models() -> Iterable[str]:
    """The models of the zoo."""
    from .. import zoo

    return zoo.names()


def tasks() -> Iterable[str]:
    """The tasks of the zoo."""
    from .. import zoo

    return zoo.tasks()


def methods() -> Iterable[str]:
    """The methods of every installed plugin."""
    from ._known import method_names

    return method_names()
