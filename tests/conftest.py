"""Shared by every test: no network, few threads, throw-away plugins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

# Before transformers is imported anywhere: a test that needs the hub is a mistake, not a slow test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before triton is imported anywhere: without a GPU its kernels run in its interpreter, with one they are compiled.
if not os.path.exists("/dev/nvidia0"):
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

# pytest runs in two processes on two cores.
torch.set_num_threads(1)

settings.register_profile(
    "steer", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("steer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def plugged() -> Iterator[Callable[..., object]]:
    """Register a plugin object for one test: `plugged(plugin, name="mine")`."""
    from steer._plugins import manager

    added = []

    def register(plugin: object, name: str = "throw-away") -> object:
        manager().register(plugin, name=name)
        added.append(plugin)
        return plugin

    yield register
    for plugin in added:
        manager().unregister(plugin)
