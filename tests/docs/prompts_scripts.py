"""The modules of docs/experiments/prompts, for the tests of its records and of its claims."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[2] / "docs" / "experiments" / "prompts"


@contextmanager
def modules() -> Iterator[Callable[[str], Any]]:
    """Inside, the experiment's own modules by name; another experiment has modules of the same names."""
    names = [path.stem for path in SCRIPTS.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
