"""The static head shift against its equation in a forward written out in fp64, and the choice of heads."""

from __future__ import annotations

import pytest
import torch

import steer
from tests.engine.families import FAMILIES
from tests.engine.helpers import HEADS

from .by_hand import Change, wide_llama
from .learned import at_random, at_the_start, check_equation
from .subjects import subject


@pytest.mark.parametrize("layers", ["all", (2, 0)])
def test_it_is_its_equation_at_every_token(layers):
    model = wide_llama()
    method = at_random("head_shift", model, layers=layers)
    places = list(range(3) if layers == "all" else layers)
    vectors = method.tensors["vector"].double()
    assert vectors.shape == (len(places), HEADS, 12)

    def shift(layer, o, q, scores, seen):
        return o + vectors[places.index(layer)] if layer in places else o

    check_equation(model, method, Change(heads=shift))


def test_chosen_heads_alone_are_moved():
    model, heads = wide_llama(), ((0, 1), (1, 0), (0, 7))
    method = at_random("head_shift", model, heads=heads)
    vectors = method.tensors["vector"].double()
    assert vectors.shape == (3, 12)

    def shift(layer, o, q, scores, seen):
        o = o.clone()
        for vector, (chosen, head) in zip(vectors, heads, strict=True):
            if chosen == layer:
                o[:, :, head] += vector
        return o

    check_equation(model, method, Change(heads=shift))


def test_chosen_heads_are_fitted_saved_and_loaded(tmp_path):
    one = subject("llama")
    method = steer.create("head_shift", heads=((0, 1), (1, 0)), losses={"ce": 1.0})
    method.fit(one.model, one.processor, one.examples, dev=[], max_steps=2, progress=False)
    assert (method.tensors["vector"].abs().sum(-1) > 0).all()
    method.save_pretrained(tmp_path)
    loaded = steer.load(tmp_path, one.model)
    assert loaded == method
    assert torch.equal(loaded.tensors["vector"], method.tensors["vector"])


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"heads": ((0, 1), (1, 0), (0, 1))}, ["(0, 1)", "twice"]),
        ({"heads": ()}, ["heads", "all"]),
        ({"heads": ((0, 1, 2),)}, ["(0, 1, 2)", "(layer, head)"]),
        ({"heads": ((0, 8),)}, ["head", "8", "0, 1, 2, 3, 4, 5, 6, 7"]),
        ({"heads": ((3, 0),)}, ["layer", "3", "0, 1, 2"]),
        ({"heads": ((-4, 0),)}, ["layer", "-4", "0, 1, 2"]),
        ({"layers": (3,)}, ["layer", "3", "0, 1, 2"]),
    ],
)
def test_a_head_that_cannot_be_is_one_clear_error(fields, facts):
    model = subject("llama").model
    with pytest.raises(steer.SteerError) as error, steer.attach(model, at_the_start("head_shift", model, **fields)):
        pass
    for fact in facts:
        assert fact in str(error.value)


def test_a_layer_without_softmax_attention_cannot_be_chosen():
    model = FAMILIES["qwen3_5"].model()
    assert [one.attention.kind for one in steer.inspect(model).tower().layers] == ["linear"] * 3 + ["softmax"]
    for fields in ({"heads": ((0, 0),)}, {"layers": (0, 3)}):
        with pytest.raises(steer.SteerError, match=r"layer 0 .*softmax"):
            at_the_start("head_shift", model, **fields)
