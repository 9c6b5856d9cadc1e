"""What the key-value cache keeps: memories of demonstrations, and choices of tokens while a model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import steer

if TYPE_CHECKING:
    from steer.registry import MethodRegistry


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """Register every method of this package."""
    from .emloc import EMLoC

    for method in (EMLoC,):
        registry.add(method)
