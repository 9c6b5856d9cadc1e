"""A plugin that is there for a while, without being installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pluggy import PluginValidationError

from .._plugins import manager
from ..errors import PluginError
from ..hookspecs import hookimpl
from ..method import Method
from ..registry import MethodRegistry


class _Brings:
    """A plugin that registers methods and nothing else."""

    def __init__(self, *classes: type[Method]) -> None:
        self.classes = classes

    @hookimpl
    def steer_register_methods(self, registry: MethodRegistry) -> None:
        for cls in self.classes:
            registry.add(cls)


@contextmanager
def plugged(plugin: object, name: str = "plugged") -> Iterator[object]:
    """Have a plugin for the length of a `with` block, as if it were installed.

    Args:
        plugin: a `steer.Method` subclass, or any object or module with hooks marked `@steer.hookimpl`.
        name: what errors and traces call it.

    Yields:
        The plugin.

    Raises:
        PluginError: a plugin of this name, or this very object, is there already; or a hook has a wrong signature.
    """
    registered = _Brings(plugin) if isinstance(plugin, type) and issubclass(plugin, Method) else plugin
    plugins = manager()
    try:
        plugins.register(registered, name=name)
        plugins.check_pending()
    except (ValueError, PluginValidationError) as error:
        if plugins.get_plugin(name) is registered:
            plugins.unregister(registered)
        raise PluginError(f"the plugin {name!r} cannot be registered: {' '.join(str(error).split())}") from error
    try:
        yield plugin
    finally:
        plugins.unregister(registered)
