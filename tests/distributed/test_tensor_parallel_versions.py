"""A transformers whose tensor parallelism is not where steer reads it: whole models go on, spread ones are refused."""

from __future__ import annotations

import sys

import pytest
import torch

import steer
from steer.errors import MappingError
from tests.engine.helpers import tiny_llama, tokens

SCALE = steer.Intervention(steer.sites.head_out([0], [1]), steer.ops.Scale(0.0))


@pytest.fixture
def older(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setitem(sys.modules, "transformers.distributed.tensor_parallel", None)


def test_processes_that_each_have_a_whole_model_steer_it_alike(request):
    model, ids = tiny_llama(), tokens()
    with steer.attach(model, SCALE):
        truth = model(ids).logits
    request.getfixturevalue("older")
    with steer.attach(model, SCALE):
        assert torch.equal(model(ids).logits, truth)


def test_a_spread_model_is_refused_with_the_version_that_will_do(older):
    model = tiny_llama()
    model._tp_size = 2
    with pytest.raises(MappingError, match=r"tensor parallelism.* transformers 5\.23"):
        with steer.attach(model, SCALE):
            pass
