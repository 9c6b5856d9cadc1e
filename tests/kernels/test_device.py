"""Every launcher runs on the device of its tensors, and not on the one that happens to be current."""

from __future__ import annotations

import contextlib
import importlib
from types import SimpleNamespace

import pytest
import torch

from steer_kernels.fused import FILES
from steer_kernels.fused._op import on_its_device

LAUNCHERS = {
    (name, part): launcher
    for name in sorted(
        {*FILES.values(), *(f"{file}_backward" for file in ("shift", "head_shift", "query_shift", "jsd"))}
    )
    for part in ("launch", "launch_backward")
    if hasattr(module := importlib.import_module(f"steer_kernels.fused.{name}"), part)
    for launcher in [getattr(module, part)]
}


@pytest.mark.parametrize("which", LAUNCHERS, ids="-".join)
def test_every_launcher_looks_where_its_tensors_are(which):
    assert LAUNCHERS[which].__wrapped__.__name__ == which[1]
    assert LAUNCHERS[which].__code__ is on_its_device(lambda x: x).__code__


@pytest.mark.parametrize("where, entered", [(0, []), (1, ["cuda:1"])])
def test_the_device_is_changed_only_where_it_differs(where, entered, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def device(name):
        seen.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    tensor = SimpleNamespace(is_cuda=True, device=f"cuda:{where}", get_device=lambda: where)
    assert on_its_device(lambda x, y: (x, y))(tensor, 3) == (tensor, 3)
    assert seen == entered


def test_a_cpu_tensor_asks_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("there may be none"))
    assert on_its_device(lambda x: x + 1)(torch.zeros(1)) == 1
