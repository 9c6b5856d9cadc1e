"""Errors a user of steer can meet. Each message says what was asked, what exists, and how to go on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 200
"""Characters of a name that an error quotes at most."""


class SteerError(Exception):
    """Base of every error that steer raises on purpose."""


class UnknownNameError(SteerError, LookupError):
    """A name, layer or head that does not exist; the message lists what does and the nearest valid one."""


class MappingError(SteerError):
    """A model, or a part of one, that could not be mapped or cannot be reached at the site asked for."""


class InterventionError(SteerError, ValueError):
    """An intervention that is malformed or does not fit the model: wrong shape, wrong site, wrong gate."""


class NeverFiredError(SteerError):
    """A session ended and some intervention in it never touched a tensor (`strict=True`)."""


class SessionError(SteerError, RuntimeError):
    """A session used in a way that cannot be right: entered twice, or from two threads on one model."""


class PluginError(SteerError):
    """A plugin that breaks the contract, such as two plugins claiming one method name."""


class FileFormatError(SteerError, ValueError):
    """A file that is truncated, damaged, hostile or of another format."""


class FingerprintError(SteerError, ValueError):
    """A saved method that was made for another model; the message lists the differences."""


def unknown_name(what: str, asked: object, known: Iterable[object], hint: str = "") -> UnknownNameError:
    """Build the error for a name that does not exist.

    Args:
        what: the kind of thing asked for, as a noun ("site", "method", "tower").
        asked: what the user gave.
        known: every valid value.
        hint: how to go on, appended as a sentence.
    """
    # A name can come from a file, and be a megabyte long.
    names = [str(name)[:LONGEST] for name in known]
    wanted = str(asked)[:LONGEST]
    nearest = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    parts = [f"there is no {what} {wanted!r}"]
    parts.append(f"known: {listed}" if names else "none are known")
    if hint:
        parts.append(hint)
    if nearest:
        parts.append(f"did you mean {nearest[0]!r}?")
    return UnknownNameError("; ".join(parts))
