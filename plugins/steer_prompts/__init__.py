"""Learned prompts and adapters for models that score pictures against texts: CoOp, CoCoOp, MaPLe, CoPrompt, others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import steer

if TYPE_CHECKING:
    from steer.registry import MethodRegistry


@steer.hookimpl
def steer_session_enter(session: steer.Session) -> None:
    """Note which sessions are open."""
    from ._sessions import entered

    entered(session)


@steer.hookimpl
def steer_session_exit(session: steer.Session, report: object) -> None:
    """Forget a session that has ended."""
    from ._sessions import left

    left(session)


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """Register every method of this package."""
    from .presets import PRESETS

    for preset in PRESETS:
        registry.add(preset)
