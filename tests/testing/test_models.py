"""Tiny models by name: which there are, what they are like, and that a seed decides them."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

import steer
from steer import testing
from steer.errors import SteerError, UnknownNameError
from steer.testing._configs import NEEDS_TIMM
from steer.testing._inputs import NoInputs, inputs_for
from steer.testing._shrink import shrink

MAPPINGS = (
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)
TRAITS = {
    "llava": lambda m: m.tower().layers[0].attention.num_heads == m.tower().layers[0].attention.num_kv_heads,
    "qwen2_5_vl": lambda m: m.tower().layers[0].attention.num_heads > m.tower().layers[0].attention.num_kv_heads,
    "gemma3": lambda m: len(m.tower().layers) >= 3,
    "mllama": lambda m: any(layer.cross_attention and not layer.attention for layer in m.tower().layers),
    "florence2": lambda m: "text_encoder" in m.towers,
    "blip": lambda m: not m.tower().layers[0].attention.registry,
    "kimi_k25": lambda m: m.tower().layers[0].attention.value_dim < m.tower().layers[0].attention.head_dim,
    "qwen3_5": lambda m: {layer.attention.kind for layer in m.tower().layers} == {"linear", "softmax"},
    "nemotron_h_omni": lambda m: (
        {a and a.kind for a in (one.attention for one in m.tower().layers)} == {"ssm", "softmax", None}
    ),
    "clip": lambda m: m.streams is not None,
    "siglip2": lambda m: m.streams is not None,
}

# Several streams side by side: a vector as wide as the tower does not fit what passes between its layers.
WIDER_STREAM = {"qwen4_exp": "a row of this tensor has 256 numbers, and the vector given for it 64"}


def test_there_is_a_family_of_each_kind():
    assert TRAITS.keys() == testing.FAMILIES.keys() <= set(testing.architectures())


@pytest.mark.parametrize("name", TRAITS)
def test_a_family_is_what_it_says(name):
    model, inputs = testing.tiny(name)
    assert TRAITS[name](steer.inspect(model))
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) < 5_000_000
    assert len(inputs["input_ids"]) == 1
    before = transformers.logging.get_verbosity()
    again, other = testing.tiny(type(model).__name__)
    assert transformers.logging.get_verbosity() == before
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(inputs[key], other[key]) for key in inputs)


def test_every_class_of_transformers_has_one_name():
    names = testing.architectures()
    classes = {one if isinstance(one, str) else one[0] for mapping in MAPPINGS for one in mapping.values()}
    assert len(names) == len(set(names))
    timm = [cls for cls in NEEDS_TIMM if cls.startswith("Gemma3n") and "gemma3n" not in names]
    assert len(names) == len(classes) - (len(NEEDS_TIMM) if timm else 0)
    assert {"llava", "blip", "BlipModel", "clip"} <= set(names)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(UnknownNameError, match="'lava'.*did you mean 'llava'"):
        testing.tiny("lava")
    with pytest.raises(UnknownNameError, match="did you mean 'LlavaForConditionalGeneration'"):
        testing.tiny("LlavaForConditionGeneration")


def test_what_needs_a_package_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SteerError, match="timm"):
        testing.tiny("gemma3n")


def test_a_small_config_keeps_which_layer_looks_at_which_and_half_a_head_of_rotary_factors():
    data = {
        "num_hidden_layers": 6,
        "hidden_size": 512,
        "layer_types": ["a", "a", "b", "a", "b", "b"],
        "kv_source_layers": [0, 1, 2, 0, 2, 4],
        "rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [2.0] * 48},
    }
    small = shrink(data)
    # Layers 0, 2, 3 and 5 stay: the first of type a and of type b that another looks at, and of those that none does.
    assert small["layer_types"] == ["a", "b", "a", "b"]
    assert small["kv_source_layers"] == [0, 1, 0, 3]  # the last one's source is gone: it looks at itself
    assert small["rope_scaling"] == {"long_factor": [1.0] * 8, "short_factor": [2.0] * 8}


def test_a_model_that_takes_no_inputs_that_are_tried_tells_all_of_them(monkeypatch):
    model, _ = testing.tiny("clip")
    found = steer.inspect(model)

    def refuses(input_ids=None, pixel_values=None):
        raise ValueError("not these")

    monkeypatch.setattr(model, "forward", refuses)
    with pytest.raises(NoInputs, match=r"'pixel_values': \(1, 3, \d+, \d+\).*ValueError: not these"):
        inputs_for(model, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", testing.architectures())
def test_every_architecture_passes_the_checks(name, tmp_path):
    from .methods import RightLearned

    model, inputs = testing.tiny(name)
    with testing.plugged(RightLearned):
        if name in WIDER_STREAM:
            with pytest.raises(AssertionError, match=WIDER_STREAM[name]):
                testing.check(RightLearned(), model, inputs, tmp_path)
            return
        assert {one.status for one in testing.check(RightLearned(), model, inputs, tmp_path)} <= {"pass", "skip"}
