"""The suites that there are: those that ship with the package, and those that plugins brought."""

from __future__ import annotations

import inspect
from typing import Any

from .._plugins import Source, call_alone, manager, sources, warn_broken
from ..errors import PluginError
from ._chair import Chair
from ._pope import Pope
from ._suite import Suite

BUILT_IN = Source("suites", "steer-vlm")


class SuiteRegistry:
    """What `steer_register_suites` is handed; it knows which plugin is adding."""

    def __init__(self, source: Source, found: dict[str, tuple[Suite, Source]]) -> None:
        self._source, self._found = source, found

    def add(self, cls: type[Suite]) -> None:
        """Register a suite under its `name`.

        Raises:
            PluginError: the class is not a complete suite, or another plugin has the name; the message says which.
        """

        def refuse(reason: str) -> PluginError:
            return PluginError(f"plugin {self._source} registered {cls!r}, which {reason}")

        if not (isinstance(cls, type) and issubclass(cls, Suite)):
            raise refuse("is not a subclass of steer.suites.Suite")
        if inspect.isabstract(cls):
            raise refuse(f"does not define {', '.join(sorted(cls.__abstractmethods__))}")
        for attribute in ("name", "paper", "summary", "statistics", "shown"):
            if not hasattr(cls, attribute):
                raise refuse(f"has no class attribute {attribute!r}")
        unknown = [name for name in cls.shown if name not in cls.statistics]
        if unknown or not cls.shown:
            raise refuse(f"shows {', '.join(unknown) or 'nothing'}; its statistics are {', '.join(cls.statistics)}")
        if cls.name in self._found:
            raise PluginError(
                f"two plugins claim the suite name {cls.name!r}: {self._found[cls.name][1]} and {self._source}; "
                "uninstall one of them"
            )
        self._found[cls.name] = (cls(), self._source)


def suites() -> dict[str, Suite]:
    """Every suite by name: the built-in ones and those of installed plugins.

    A plugin that registers what is no suite, or one whose name is taken, is named in a warning and skipped.
    """
    found: dict[str, tuple[Suite, Source]] = {}
    built_in = SuiteRegistry(BUILT_IN, found)
    for cls in (Pope, Chair):
        built_in.add(cls)
    for name, source in sources(manager()).items():
        _ask(name, source, SuiteRegistry(source, found))
    return {name: suite for name, (suite, _) in sorted(found.items())}


def _ask(name: str, source: Source, registry: Any) -> None:
    try:
        call_alone(manager(), name, "steer_register_suites", registry=registry)
    except (Exception, SystemExit) as error:
        warn_broken(source, "in steer_register_suites", error)
