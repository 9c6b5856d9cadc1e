"""Learned prompts and adapters for models that score pictures against texts: CoOp, CoCoOp, MaPLe, CoPrompt, others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import steer

if TYPE_CHECKING:
    from steer.registry import MethodRegistry


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """Register every method of this package."""
    from .presets import PRESETS

    for preset in PRESETS:
        registry.add(preset)
