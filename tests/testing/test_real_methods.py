"""Methods of the package pass every check."""

from __future__ import annotations

import pytest

import steer
from steer import testing

# Factors and masks that change something at tiny size; learned ones start as they are.
NO_IDENTITY = ("hificl",)  # its docstring says so: keys without values take some attention
CASES = {
    ("llava", "live"): {},
    ("florence2", "head_scale"): {"factor": 0.5},
    ("kimi_k25", "hificl"): {"virtual": 2, "rank": 2},
    ("qwen2_5_vl", "image_focus"): {"beta": 2.0},
    ("mllama", "mimic"): {},
}


@pytest.mark.parametrize("architecture, name", CASES)
def test_every_promise_holds(architecture, name, tmp_path):
    model, inputs = testing.tiny(architecture)
    skip = ("identity",) if name in NO_IDENTITY else ()
    found = testing.check(steer.create(name, **CASES[architecture, name]), model, inputs, tmp_path, skip=skip)
    assert {one.status for one in found} == {"pass"}


def test_a_fitted_one_on_a_trained_model(tmp_path):
    from steer.prompts import Prompt, encode

    model, processor = steer.zoo.load("tiny-vlm")
    examples = steer.zoo.examples("colour", "demo", n=8)
    inputs = encode(model, processor, [Prompt(examples[0])]).inputs
    fitted = steer.create("icv", strength=0.5).fit(model, processor, examples, progress=False)
    found = testing.check(fitted, model, inputs, tmp_path)
    assert [(one.name, one.status) for one in found] == [
        (name, "pass") for name in ("fires", "restores", "decoding", "saves")
    ]
    assert "refused" in found[-1].detail
