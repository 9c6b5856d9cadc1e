"""Going on from a layer gives what the whole forward gave, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from steer.replaying import Replay
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama, tokens


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_5"])
def test_going_on_from_any_layer_equals_the_whole_forward(name) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt()
    replay = Replay(model)
    with replay.watch():
        truth = model(**inputs).logits
    for layer in range(1, 2):
        with replay.from_layer(layer):
            again = model(**inputs).logits
        torch.testing.assert_close(again, truth, rtol=1e-6, atol=1e-6)


def test_the_layers_below_run_nothing_and_the_rest_sees_the_state_that_was_kept() -> None:
    model, ids = tiny_llama(), tokens()
    replay = Replay(model)
    with replay.watch():
        truth = model(input_ids=ids).logits
    ran: list[int] = []
    handles = [
        layer.self_attn.register_forward_hook(lambda *a, i=i: ran.append(i))
        for i, layer in enumerate(model.model.layers)
    ]
    with replay.from_layer(2):
        again = model(input_ids=torch.ones_like(ids)).logits
    for handle in handles:
        handle.remove()
    assert ran == [2]
    assert torch.equal(again, truth)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model, ids = tiny_llama(), tokens()
    before = model(input_ids=ids).logits
    replay = Replay(model)
    with replay.watch():
        model(input_ids=ids)
    with pytest.raises(RuntimeError, match="stop"), replay.from_layer(1):
        raise RuntimeError("stop")
    assert all("forward" not in layer.__dict__ for layer in model.model.layers)
    assert torch.equal(model(input_ids=ids).logits, before)
