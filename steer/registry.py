"""The methods and kernels that installed plugins brought, and how to get one by name."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from steer_kernels.dispatch import adopt, ready

from ._config import config_fields
from ._plugins import Source, call_alone, manager, sources, warn_broken
from .errors import FileFormatError, PluginError, SteerError, unknown_name
from .method import Method
from .model_map import ModelMap


@dataclass(frozen=True)
class MethodInfo:
    """One installed method.

    Attributes:
        name: what `steer.create` takes.
        cls: the class.
        plugin: the name of the plugin's entry point.
        distribution: the installed package it came in.
        version: of that package.
    """

    name: str
    cls: type[Method]
    plugin: str
    distribution: str
    version: str

    @property
    def summary(self) -> str:
        """One line on what it does."""
        return self.cls.summary

    @property
    def paper(self) -> str:
        """Link to its paper."""
        return self.cls.paper

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the configuration fields and their defaults."""
        fields = {name: _default_of(field) for name, field in config_fields(self.cls).items()}
        return {
            "name": self.name,
            "summary": self.summary,
            "paper": self.paper,
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "class": f"{self.cls.__module__}.{self.cls.__qualname__}",
            "config": fields,
        }


class MethodRegistry:
    """What `steer_register_methods` is handed; it knows which plugin is adding."""

    def __init__(self, source: Source, found: dict[str, MethodInfo]) -> None:
        self._source = source
        self._found = found

    def add(self, cls: type[Method]) -> None:
        """Register a method under its `name`.

        Raises:
            PluginError: the class is not a complete method, or another plugin has the name; the message says which.
        """
        self._check(cls)
        info = MethodInfo(cls.name, cls, self._source.plugin, self._source.distribution, self._source.version)
        other = self._found.get(cls.name)
        if other is not None and other.cls is not cls:
            first = Source(other.plugin, other.distribution, other.version)
            raise _ClaimedTwiceError(
                f"two plugins claim the method name {cls.name!r}: {first} and {self._source}; uninstall one of them"
            )
        self._found[cls.name] = info

    def _check(self, cls: object) -> None:
        def refuse(reason: str) -> PluginError:
            return PluginError(f"plugin {self._source} registered {cls!r}, which {reason}")

        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise refuse("is not a subclass of steer.Method")
        if "__dataclass_fields__" not in cls.__dict__:
            raise refuse("is not a dataclass; put @dataclass above the class")
        for attribute in ("name", "paper", "summary"):
            if not isinstance(getattr(cls, attribute, None), str):
                raise refuse(f"has no class attribute {attribute!r} that is a string")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", cls.name):
            raise refuse(f"has the name {cls.name!r}; a name is lower-case letters, digits and underscores")
        if inspect.isabstract(cls):
            raise refuse(f"does not define {', '.join(sorted(cls.__abstractmethods__))}")


class KernelRegistry:
    """What `steer_register_kernels` is handed."""

    def __init__(self, source: Source, found: dict[tuple[str, str], tuple[Callable[..., Any], Source]]) -> None:
        self._source = source
        self._found = found

    def add(self, op: str, device_type: str, function: Callable[..., Any]) -> None:
        """Register the function that runs `op` on tensors of a device type (`"cuda"`, `"cpu"`, ...).

        Raises:
            PluginError: another plugin has that op on that device; the message names both.
        """
        other = self._found.get((op, device_type))
        if other is not None:
            raise _ClaimedTwiceError(
                f"two plugins claim the kernel {op!r} on {device_type!r}: {other[1]} and {self._source}; "
                "uninstall one of them"
            )
        self._found[op, device_type] = (function, self._source)


class _ClaimedTwiceError(PluginError):
    """Two plugins want one name. Unlike a broken plugin, neither can be skipped without guessing."""


def methods() -> dict[str, MethodInfo]:
    """Every installed plugin's methods, by name. Loads the plugins on the first call.

    Raises:
        PluginError: two plugins claim one name; the message names both.
    """
    found: dict[str, MethodInfo] = {}
    for name, source in sources(manager()).items():
        _ask(name, source, "steer_register_methods", MethodRegistry(source, found))
    return dict(sorted(found.items()))


def kernels() -> dict[tuple[str, str], Callable[..., Any]]:
    """Every kernel that plugins brought, by op and device type.

    Raises:
        PluginError: two plugins claim one op on one device; the message names both.
    """
    found: dict[tuple[str, str], tuple[Callable[..., Any], Source]] = {}
    for name, source in sources(manager()).items():
        _ask(name, source, "steer_register_kernels", KernelRegistry(source, found))
    return {key: function for key, (function, _) in found.items()}


def use_kernels() -> None:
    """Hand the kernels that plugins brought to the dispatcher, once for each set of plugins.

    It also imports its own, before a model runs: what torch compiles cannot import.
    """
    global _used
    ready("cuda" if torch.cuda.is_initialized() else "cpu")
    present = tuple(name for name, plugin in manager().list_name_plugin() if plugin is not None)
    if present != _used:
        adopt(kernels())
        _used = present


_used: tuple[str, ...] = ()


def create(name: str, **config: Any) -> Method:
    """Make a method by its registered name.

    Args:
        name: one of `steer.methods()`.
        **config: the method's configuration fields.

    Raises:
        UnknownNameError: no method or no field of that name; the message lists what there is.
        SteerError: a required field is missing.
    """
    cls = method_class(name)
    fields = config_fields(cls)
    for key in config:
        if key not in fields:
            raise unknown_name(f"configuration field of method {name!r}", key, fields)
    missing = [key for key, field in fields.items() if key not in config and _required(field)]
    if missing:
        raise SteerError(f"method {name!r} needs {', '.join(missing)}; its fields are {', '.join(fields)}")
    return cls(**config)


def load(
    path: str | os.PathLike[str],
    model: torch.nn.Module | ModelMap | None = None,
    *,
    revision: str | None = None,
) -> Method:
    """Load a saved method from a folder or a hub id.

    Args:
        path: a folder written by `save_pretrained`, or a hub id.
        model: the model (or its map) that it must fit; checked when given.
        revision: branch, tag or commit of a hub id.

    Raises:
        FileFormatError: the files are missing, truncated, damaged or hostile.
        FingerprintError: the method was made for another model; the message says what differs.
        UnknownNameError: no installed plugin has this method, or the path does not exist.
    """
    method = Method.from_pretrained(path, revision=revision)
    if isinstance(model, ModelMap):
        method.check_fits(model)
    elif model is not None:
        _try_on(method, model, path)
    return method


def _try_on(method: Method, model: torch.nn.Module, path: object) -> None:
    """Compile the method's interventions for the model without installing them."""
    from ._compile import compile_plan
    from ._tracker import Tracker
    from .session import map_of

    model_map = map_of(model)
    method.check_fits(model_map)
    try:
        compile_plan(model, model_map, Tracker(model, model_map, None), method.interventions(model_map), measure="none")
    # A tensor that is missing or has another shape surfaces as whatever the method's arithmetic raises.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise FileFormatError(
            f"what {path} holds makes no interventions of method {method.name!r} on {model_map.model_class}: {reason}"
        ) from error


def method_class(name: str, distribution: object = None) -> type[Method]:
    """The class registered under `name`.

    Args:
        name: one of `steer.methods()`.
        distribution: the package a saved file says it came from, for the hint.

    Raises:
        UnknownNameError: there is none; the message lists what there is.
    """
    known = methods()
    if name not in known:
        asked = f"{name!r:.100}"[1:-1] if isinstance(name, str) else name
        wanted = distribution if isinstance(distribution, str) and re.fullmatch(r"[\w.-]{1,80}", distribution) else None
        hint = f"it came from the package {wanted!r}, which may have to be installed" if wanted else ""
        raise unknown_name("method", asked, known, hint)
    return known[name].cls


def source_of(cls: type[Method]) -> Source | None:
    """The plugin that registered a class, or None for a class that is used without being installed."""
    for info in methods().values():
        if info.cls is cls:
            return Source(info.plugin, info.distribution, info.version)
    return None


def _ask(name: str, source: Source, hook: str, registry: MethodRegistry | KernelRegistry) -> None:
    try:
        call_alone(manager(), name, hook, registry=registry)
    except _ClaimedTwiceError as error:
        raise PluginError(str(error)) from None
    except (Exception, SystemExit) as error:
        warn_broken(source, f"in {hook}", error)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if _required(field):
        return "required"
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return default if isinstance(default, str | int | float | bool | list | dict | None) else str(default)


__all__ = [
    "KernelRegistry",
    "MethodInfo",
    "MethodRegistry",
    "create",
    "kernels",
    "load",
    "methods",
]
