"""`steer inspect` on everything that leads to a model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig

import steer
from steer._loading import load_model
from steer.errors import MappingError
from steer.model_map import Attention, Layer, ModelMap, Tower


@pytest.fixture
def targets(tmp_path):
    """The tiny model as a zoo name, a folder with weights, a config.json alone, and one under another name."""
    folder = steer.zoo.folder("tiny-vlm")
    (tmp_path / "config").mkdir()
    for target in (tmp_path / "config" / "config.json", tmp_path / "other.json"):
        shutil.copy(folder / "config.json", target)
    return [
        "tiny-vlm",
        str(folder),
        str(tmp_path / "config"),
        str(tmp_path / "config/config.json"),
        str(tmp_path / "other.json"),
    ]


def test_every_road_gives_the_map_of_the_loaded_model(steer_cli, targets):
    model, _ = steer.zoo.load("tiny-vlm")
    expected = json.loads(json.dumps(steer.inspect(model).to_dict()))
    for target in targets:
        ran = steer_cli("inspect", target, "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out) == expected, target


def test_the_tree_is_printed_as_the_map_prints_itself(steer_cli):
    model, _ = steer.zoo.load("tiny-vlm")
    assert steer_cli("inspect", "tiny-vlm").out == f"{steer.inspect(model)}\n"


def test_a_model_of_hundreds_of_gigabytes_is_mapped_without_its_weights(tmp_path, steer_cli):
    text = LlamaConfig(hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
                       num_key_value_heads=8, vocab_size=128256)  # fmt: skip
    LlavaConfig(vision_config=CLIPVisionConfig(), text_config=text).save_pretrained(tmp_path)
    ran = steer_cli("inspect", str(tmp_path), "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["num_parameters"] > 400e9
    assert len(found["towers"]["text"]["layers"]) == 126
    assert found["towers"]["text"]["layers"][0]["attention"]["num_kv_heads"] == 8


def test_a_config_object_is_enough():
    model, _ = steer.zoo.load("tiny-vlm")
    assert steer.inspect(model.config).fingerprint() == steer.inspect(model).fingerprint()


def test_building_on_meta_leaves_the_default_device_alone():
    steer.inspect(steer.zoo.folder("tiny-vlm"))
    assert torch.empty(1).device.type == "cpu"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_type": "no-such-type"}', '{"model_type": 7}', "not json"])
def test_a_config_that_is_none_is_one_clear_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MappingError, match=r"config\.json"):
        steer.inspect(tmp_path / "config.json")


def test_a_folder_without_weights_is_one_clear_error(tmp_path):
    shutil.copy(steer.zoo.folder("tiny-vlm") / "config.json", tmp_path)
    with pytest.raises(MappingError, match="cannot load") as caught:
        load_model(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_of_no_model_is_refused():
    with pytest.raises(MappingError, match="no model class for a"):
        steer.inspect(PreTrainedConfig())


def test_the_tree_tells_small_sizes_cross_attention_and_mixers_without_heads():
    crossed = Attention("softmax", "layers.0.cross", 4, 2, 8, 16, registry=True)
    layers = (
        Layer(0, "layers.0", Attention("ssm", "layers.0.mixer"), crossed, mlp="layers.0.mlp"),
        Layer(1, "layers.1"),
    )
    found = str(ModelMap("ToyModel", "toy", {"text": Tower("text", "layers", 32, layers)}, num_parameters=999))
    for fact in ("999 parameters", "ssm + cross softmax 4 heads (2 kv) x 8/16 + mlp", "no mixer"):
        assert fact in found
