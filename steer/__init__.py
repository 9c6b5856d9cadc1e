"""steer: adapt any Hugging Face vision-language model without touching its weights.

Names are loaded on first use, so that `import steer` costs almost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import (
        contrast,
        data,
        errors,
        fitting,
        gates,
        look,
        memory,
        ops,
        positions,
        prompts,
        regions,
        sites,
        suites,
        testing,
        training,
        zoo,
    )
    from ._folding import Folded, fold
    from ._inspecting import inspect
    from .demonstrations import Demonstrations
    from .errors import SteerError
    from .examples import Example
    from .hookspecs import hookimpl
    from .intervention import Intervention
    from .method import Method
    from .model_map import ModelMap
    from .positions import Positions
    from .profiling import HeadMap, profile
    from .recording import record
    from .registry import create, load, methods
    from .session import Session, attach
    from .two_stream import TwoStream

_HOMES = {
    "Demonstrations": "demonstrations",
    "Example": "examples",
    "Folded": "_folding",
    "HeadMap": "profiling",
    "Intervention": "intervention",
    "Method": "method",
    "ModelMap": "model_map",
    "Positions": "positions",
    "Session": "session",
    "SteerError": "errors",
    "TwoStream": "two_stream",
    "attach": "session",
    "create": "registry",
    "fold": "_folding",
    "hookimpl": "hookspecs",
    "inspect": "_inspecting",
    "load": "registry",
    "methods": "registry",
    "profile": "profiling",
    "record": "recording",
}
_MODULES = (
    "contrast", "data", "errors", "fitting", "gates", "look", "memory", "ops", "positions", "prompts", "regions",
    "sites", "suites", "testing", "training", "zoo",
)  # fmt: skip

__all__ = [
    "Demonstrations",
    "Example",
    "Folded",
    "HeadMap",
    "Intervention",
    "Method",
    "ModelMap",
    "Positions",
    "Session",
    "SteerError",
    "TwoStream",
    "__version__",
    "attach",
    "contrast",
    "create",
    "data",
    "errors",
    "fitting",
    "fold",
    "gates",
    "hookimpl",
    "inspect",
    "load",
    "look",
    "memory",
    "methods",
    "ops",
    "positions",
    "profile",
    "prompts",
    "record",
    "regions",
    "sites",
    "suites",
    "testing",
    "training",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
