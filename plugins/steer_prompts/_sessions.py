"""Which sessions are open on a model: what was computed inside one must not be used outside of it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from steer import Session

_open: WeakKeyDictionary[torch.nn.Module, list[Session]] = WeakKeyDictionary()


def entered(session: Session) -> None:
    """Note a session that begins."""
    _open.setdefault(session.model, []).append(session)


def left(session: Session) -> None:
    """Note a session that ends."""
    if session in _open.get(session.model, []):
        _open[session.model].remove(session)


def on(model: torch.nn.Module) -> tuple[Session, ...]:
    """The open ones, in the order in which they were entered."""
    return tuple(_open.get(model, ()))
