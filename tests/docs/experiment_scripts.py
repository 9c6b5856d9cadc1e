"""The modules of one of docs/experiments, for the tests of its records and of its claims."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXPERIMENTS = Path(__file__).parents[2] / "docs" / "experiments"


@contextmanager
def modules(experiment: str = "prompts") -> Iterator[Callable[[str], Any]]:
    """Inside, the experiment's own modules by name; another experiment has modules of the same names."""
    scripts = EXPERIMENTS / experiment
    names = [path.stem for path in scripts.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(scripts))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(scripts))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
