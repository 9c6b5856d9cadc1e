"""Where a model runs and in what, by the options that every command has for it."""

from __future__ import annotations

import json

import pytest
import torch

import steer
from steer.cli._model import load


@pytest.mark.parametrize("source", ["name", "folder"])
def test_auto_is_transformers_own_device_map(monkeypatch, source):
    from transformers import LlavaForConditionalGeneration

    real, given = LlavaForConditionalGeneration.from_pretrained.__func__, []

    def watched(cls, *arguments, **options):
        given.append(options)
        return real(cls, *arguments, **options)

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", classmethod(watched))
    name = "tiny-vlm" if source == "name" else str(steer.zoo.folder("tiny-vlm"))
    model, processor = load(name, "auto", "bfloat16")
    (options,) = given
    assert options == {"device_map": "auto", "dtype": torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert not model.training
    if not torch.cuda.is_available():
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert type(processor) is type(steer.zoo.load("tiny-vlm")[1])


def test_a_model_that_auto_placed_answers_as_one_that_was_moved(steer_cli, tmp_path):
    example = steer.zoo.examples("plain:colour", n=1)[0]
    example.images[0].save(tmp_path / "picture.png")
    asked = ("generate", "--model", steer.zoo.folder("tiny-vlm"), "--prompt", example.question)
    asked += ("--image", tmp_path / "picture.png", "--method", "image_focus", "--json")
    placed, moved = (json.loads(steer_cli(*asked, "--device", where).out) for where in ("auto", "cpu"))
    assert placed == moved
    assert placed["answer"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_that_was_asked_for(dtype):
    assert load("tiny-vlm", "cpu", dtype)[0].dtype == getattr(torch, dtype)


def test_the_zoo_is_loaded_as_any_folder_is():
    for name in steer.zoo.names():
        (one, _), (other, _) = load(name, "cpu", None), steer.zoo.load(name)
        assert type(one) is type(other)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
