"""Every hook a plugin can implement. Mark an implementation with `@steer.hookimpl`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    import torch
    import typer

    from .model_map import ModelMap
    from .registry import KernelRegistry, MethodRegistry
    from .session import Session
    from .suites import SuiteRegistry

hookspec = HookspecMarker("steer")
hookimpl = HookimplMarker("steer")


@hookspec
def steer_register_methods(registry: MethodRegistry) -> None:
    """Add methods: `registry.add(MyMethod)` for each subclass of `steer.Method`."""


@hookspec(firstresult=True)
def steer_inspect_model(model: torch.nn.Module) -> ModelMap | None:
    """Map a model that the general rule cannot; return None for every other model."""


@hookspec
def steer_register_kernels(registry: KernelRegistry) -> None:
    """Add kernels: `registry.add(op, device_type, function)` replaces the torch code of an op on that device."""


@hookspec
def steer_add_commands(app: typer.Typer) -> None:
    """Add commands to the `steer` command line: `@app.command()`."""


@hookspec
def steer_register_suites(registry: SuiteRegistry) -> None:
    """Add benchmarks for `steer eval --suite`: `registry.add(MySuite)` for each subclass of `steer.suites.Suite`."""


@hookspec
def steer_session_enter(session: Session) -> None:
    """A session has installed its interventions; the model has not run yet."""


@hookspec
def steer_session_exit(session: Session, report: object) -> None:
    """A session has restored the model; `report` says which sites fired, how often and how far they moved."""
