"""Finding plugins, and the one pluggy manager that calls them."""

from __future__ import annotations

import functools
import os
import reprlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from . import hookspecs

GROUP = "steer"


@dataclass(frozen=True)
class Source:
    """Where a plugin came from.

    Attributes:
        plugin: the name of its entry point.
        distribution: the installed package that declares it.
        version: of that package.
    """

    plugin: str
    distribution: str = "unknown"
    version: str = ""

    def __str__(self) -> str:
        return f"{self.plugin!r} (distribution {self.distribution!r})"


_SOURCES: dict[str, Source] = {}


@functools.cache
def manager() -> pluggy.PluginManager:
    """The manager with every installed plugin loaded; found on the first call, not at `import steer`.

    A plugin that cannot be imported or breaks the hooks' signatures is named in a warning and skipped.
    """
    plugins = pluggy.PluginManager(GROUP)
    plugins.add_hookspecs(hookspecs)
    if os.environ.get("STEER_TRACE_PLUGINS", "") not in ("", "0"):
        plugins.add_hookcall_monitoring(_trace_before, _trace_after)
    for entry in entry_points(group=GROUP):
        _load(plugins, entry)
    return plugins


def sources(plugins: pluggy.PluginManager) -> dict[str, Source]:
    """Every registered plugin's source, by the name it is registered under."""
    return {name: _source_of(name) for name, plugin in plugins.list_name_plugin() if plugin is not None}


def call_alone(plugins: pluggy.PluginManager, plugin_name: str, hook: str, **arguments: Any) -> list[Any]:
    """Call `hook` of one plugin only, through pluggy, so that what it does can be put down to it."""
    others = [plugin for name, plugin in plugins.list_name_plugin() if name != plugin_name and plugin is not None]
    results = plugins.subset_hook_caller(hook, others)(**arguments)
    return list(results)


def warn_broken(source: Source, doing: str, error: BaseException) -> None:
    """Name a plugin that failed; steer goes on without it."""
    warnings.warn(
        f"steer plugin {source} failed {doing} and is skipped: "
        f"{type(error).__name__}: {' '.join(str(error).split())}; "
        f"update it, or remove it with `pip uninstall {source.distribution}`",
        RuntimeWarning,
        stacklevel=3,
    )


def _load(plugins: pluggy.PluginManager, entry: EntryPoint) -> None:
    distribution = entry.dist
    source = Source(
        entry.name,
        distribution.name if distribution else "unknown",
        distribution.version if distribution else "",
    )
    name = f"{source.distribution}:{source.plugin}"
    try:
        plugin = entry.load()
        plugins.register(plugin, name=name)
        _SOURCES[name] = source
        plugins.check_pending()
    # A plugin's module may do anything when imported, `sys.exit` included; only the user's Ctrl-C is not its failure.
    except (Exception, SystemExit) as error:
        if plugins.has_plugin(name):
            plugins.unregister(name=name)
        warn_broken(source, "to load", error)


def _source_of(name: str) -> Source:
    return _SOURCES.get(name, Source(name))


def _trace_before(hook: str, implementations: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    called = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
    _trace(f"{hook}({called})")
    for implementation in implementations:
        _trace(f"  -> {implementation.plugin_name}")


def _trace_after(
    outcome: pluggy.Result[Any], hook: str, implementations: Sequence[Any], arguments: Mapping[str, Any]
) -> None:
    if outcome.exception is not None:
        _trace(f"{hook} raised {type(outcome.exception).__name__}: {outcome.exception}")
    else:
        _trace(f"{hook} returned {_short(outcome.get_result())}")


def _trace(line: str) -> None:
    print(f"[steer plugins] {line}", file=sys.stderr)


def _short(value: object) -> str:
    """Plain data as it is, anything else by its class: a model's repr is hundreds of lines."""
    if value is None or isinstance(value, str | int | float | list | tuple | dict):
        return reprlib.repr(value)
    return f"<{type(value).__name__}>"
