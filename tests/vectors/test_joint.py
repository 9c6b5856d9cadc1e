"""The joint method is its parts, attached one after the other."""

from __future__ import annotations

import pytest
import torch

import steer
from steer.errors import InterventionError, UnknownNameError
from tests.engine.helpers import tokens

from .by_hand import wide_llama
from .learned import COUNTS, at_random, logits_with, padded

PARTS = {"keys": ("hificl", {"virtual": 16}), "heads": ("mimic", {}), "layers": ("live", {})}


@pytest.mark.parametrize("parts", [("keys", "heads", "layers"), ("heads", "layers"), ("keys",)])
@pytest.mark.parametrize("layers", ["all", (2, 0)])
def test_it_is_its_parts_attached_in_order(parts, layers):
    model = wide_llama()
    joint = at_random("joint", model, parts=parts, layers=layers)
    alone = []
    for part in parts:
        name, fields = PARTS[part]
        method = steer.create(name, layers=layers, **fields)
        method.tensors = {
            key.removeprefix(f"{part}."): value for key, value in joint.tensors.items() if key.startswith(f"{part}.")
        }
        alone.append(method)
    assert sum(len(method.tensors) for method in alone) == len(joint.tensors)
    ids = tokens(2, max(COUNTS))
    mask = padded(ids, COUNTS)
    assert torch.equal(logits_with(model, ids, mask, joint), logits_with(model, ids, mask, *alone))


def test_rates_are_those_of_its_parts():
    assert steer.create("joint").learning_rates() == {"layers.alpha": steer.create("live").alpha_rate}
    assert steer.create("joint", parts=("keys",)).learning_rates() == {}


def test_parts_that_do_not_exist_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'heads'"):
        steer.create("joint", parts=("head",))
    with pytest.raises(InterventionError, match="at least one part"):
        steer.create("joint", parts=())


def test_unfitted_it_says_so():
    model = wide_llama()
    with pytest.raises(steer.SteerError, match=r"joint.*must be fitted first|must be fitted first.*joint"):
        steer.attach(model, steer.create("joint"))


def test_it_is_fitted_saved_and_loaded(tmp_path):
    model, processor = steer.zoo.load()
    examples = steer.zoo.examples("position", "demo", n=12)
    method = steer.create("joint", virtual=4, rank=2, shots=2)
    method.fit(model, processor, examples, dev=[], max_steps=3, lr=2e-2, progress=False)
    first, *_ = method.provenance["training"]["history"]
    assert set(first) >= {"kl_answer", "ce"}
    method.save_pretrained(tmp_path)
    again = steer.load(tmp_path, model)
    assert again == method
    for name, value in method.tensors.items():
        assert torch.equal(again.tensors[name], value)
        assert value.abs().max() > 0
