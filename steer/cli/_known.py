"""The names of the installed methods, kept in a file: to ask the plugins takes seconds, and a shell waits for it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from .._plugins import GROUP

if TYPE_CHECKING:
    from ..registry import MethodInfo


def method_names() -> list[str]:
    """The kept names where the plugins are those that they were kept of; else the plugins are asked."""
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))
        if kept["plugins"] == _plugins():
            return [str(name) for name in kept["methods"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from ..registry import methods

    found = methods()
    keep(found)
    return list(found)


def keep(found: Mapping[str, MethodInfo]) -> None:
    """Keep the names of what installed plugins brought; silently not, where nothing can be written."""
    file, installed = _file(), {name for name, *_ in _plugins()}
    names = [name for name, info in found.items() if info.plugin in installed]
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"plugins": _plugins(), "methods": names}), encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steer" / "methods.json"


def _plugins() -> list[list[str]]:
    """Every installed plugin: its entry point, distribution and version."""
    found = ((one.name, one.dist) for one in entry_points(group=GROUP))
    return sorted([name, dist.name if dist else "", dist.version if dist else ""] for name, dist in found)
