"""In-context, task and function vectors: a static shift of hidden states that stands for demonstrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import steer

if TYPE_CHECKING:
    from steer.registry import MethodRegistry


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """Register every method of this package."""
    from .function_vector import FunctionVector
    from .icv import ICV
    from .task_vector import TaskVector

    for method in (ICV, TaskVector, FunctionVector):
        registry.add(method)
