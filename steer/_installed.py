"""What steer has on each model right now: whose thread, how many sessions, which wrapped attentions."""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack
from typing import Any

from torch import nn

from ._attention import AttentionPlan, AttentionSlot
from ._filing import Plan
from ._generate import around_generate
from ._tracker import Tracker
from .errors import SessionError


class _Open:
    """Stands on a model while a session is open, and refuses copies: they would keep for ever what is attached."""

    over = False
    """Once the session has ended: a shallow copy of the model still has the mark, and may be copied then."""

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        if not self.over:
            raise SessionError("a model cannot be copied inside a session; copy it before or after")
        return object, ()


_MARK = "_steer_session"


class Installed:
    """The sessions on one model."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.sessions = 0
        self._slots: dict[str, AttentionSlot] = {}

    def follow(self, model: nn.Module, tracker: Tracker, towers: set[str], undo: ExitStack) -> None:
        """Let a tracker follow these towers and every call of `generate`, which is wrapped on the instance."""
        undo.callback(tracker.remove)
        tracker.install(towers)
        undo.callback(around_generate(model, tracker.around))

    def attach(self, model: nn.Module, plan: Plan, undo: ExitStack) -> None:
        """Put a plan's hooks and attention on the model; `undo` takes back exactly these."""
        for path, part in plan.attention.items():
            slot = self._slots.get(path)
            if slot is None:
                slot = self._slots[path] = AttentionSlot(model.get_submodule(path), path)
            slot.plans.append(part)
            undo.callback(self._detach, path, part)
        for register in plan.hooks:
            undo.callback(register().remove)

    def _detach(self, path: str, part: AttentionPlan) -> None:
        slot = self._slots[path]
        slot.plans = [kept for kept in slot.plans if kept is not part]
        if not slot.plans:
            slot.restore()
            del self._slots[path]


_lock = threading.Lock()
_models: weakref.WeakKeyDictionary[nn.Module, Installed] = weakref.WeakKeyDictionary()


def enter(model: nn.Module) -> Installed:
    """Count a session in.

    Raises:
        SessionError: another thread has a session on this model.
    """
    with _lock:
        here = threading.get_ident()
        installed = _models.setdefault(model, Installed(here))
        if installed.thread != here:
            raise SessionError(
                f"this {type(model).__name__} has an open session in another thread; it changes the model itself, "
                "so one thread at a time: close the other session first, or load the model twice"
            )
        installed.sessions += 1
        model.__dict__.setdefault(_MARK, _Open())
        return installed


def leave(model: nn.Module) -> None:
    """Count a session out."""
    with _lock:
        installed = _models[model]
        installed.sessions -= 1
        if not installed.sessions:
            del _models[model]
            model.__dict__.pop(_MARK).over = True
