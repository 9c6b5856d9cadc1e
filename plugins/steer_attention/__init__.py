"""Where a model attends, changed head by head: what heads say and what they look at."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import steer

if TYPE_CHECKING:
    from steer.registry import MethodRegistry

METHODS = {
    "cast": "Cast",
    "head_mask": "HeadMask",
    "head_scale": "HeadScale",
    "image_focus": "ImageFocus",
    "iti": "ITI",
    "pai": "PAI",
    "pasta": "Pasta",
    "vcd": "VCD",
}
"""Module and class of every method, one a line: they are imported when somebody asks for methods."""


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """Register every method of this package."""
    for module, name in METHODS.items():
        registry.add(getattr(importlib.import_module(f".{module}", __name__), name))
