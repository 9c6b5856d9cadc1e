"""`steer fold` writes a checkpoint that transformers reloads, whole or not at all."""

from __future__ import annotations

import json
import os

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import steer
from steer.cli import fold
from tests.files.toy import Toy, ToyPlugin


@pytest.fixture
def toy(tmp_path, plugged):
    plugged(ToyPlugin())
    model, _ = steer.zoo.load("tiny-vlm")
    method = Toy(strength=0.3)
    method.tensors = {"vectors": torch.randn(4, 192, generator=torch.Generator().manual_seed(0))}
    method.record_provenance(steer.inspect(model), 0, "noise")
    method.save_pretrained(tmp_path / "toy")
    return method


def test_the_checkpoint_gives_the_methods_logits_without_steer(steer_cli, toy, tmp_path):
    out = tmp_path / "folded"
    ran = steer_cli("fold", "--model", "tiny-vlm", "--method", tmp_path / "toy", "--out", out, "--json")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert data["switches"] == {"text_config.mlp_bias": True}
    assert len(data["biases"]) == 4
    assert data["difference"] < 1e-5 < data["effect"]
    model, _ = steer.zoo.load("tiny-vlm")
    made, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    query = steer.prompts.Prompt(steer.zoo.examples("plain:colour", n=1)[0])
    inputs = steer.prompts.encode(model, processor, [query]).inputs
    with torch.no_grad(), steer.attach(model, toy):
        wanted = model(**inputs).logits
    assert (made(**inputs).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folded", "toy"]


def test_a_folder_with_something_in_it_is_replaced_only_when_told(steer_cli, toy, tmp_path):
    out = tmp_path / "folded"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    arguments = ("fold", "--model", "tiny-vlm", "--method", tmp_path / "toy", "--out", out)
    ran = steer_cli(*arguments)
    assert ran.code == 1
    assert "--force" in ran.err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    ran = steer_cli(*arguments, "--force")
    assert ran.code == 0, ran.err
    assert "text_config.mlp_bias=True" in ran.out
    assert (out / "model.safetensors").exists()
    assert not (out / "mine.txt").exists()


def test_an_interrupted_save_leaves_what_was_there(steer_cli, toy, tmp_path, monkeypatch):
    out = tmp_path / "folded"
    out.mkdir()
    (out / "mine.txt").write_text("kept")

    def broken(self, folder, processor=None):
        folder.mkdir()
        (folder / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr("steer._folding.Folded.save_pretrained", broken)
    ran = steer_cli("fold", "--model", "tiny-vlm", "--method", tmp_path / "toy", "--out", out, "--force")
    assert ran.code == 1
    assert "disk full" in ran.err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folded", "toy"]


def test_a_checkpoint_that_cannot_take_its_place_leaves_what_was_there(tmp_path, monkeypatch):
    out, replace = tmp_path / "folded", os.replace
    out.mkdir()
    (out / "mine.txt").write_text("kept")

    def full(source, target):
        if source.name == "new":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        fold._write(out, lambda folder: folder.mkdir())
    assert [path.name for path in tmp_path.iterdir()] == ["folded"]
    assert (out / "mine.txt").read_text() == "kept"


def test_what_cannot_be_folded_is_named_and_nothing_is_written(steer_cli, tmp_path):
    model, _ = steer.zoo.load("tiny-vlm")
    method = steer.create("task_vector")
    method.tensors = {"vector": torch.ones(192), "layer": torch.tensor(1.0)}
    method.record_provenance(steer.inspect(model), 0, "noise")
    method.save_pretrained(tmp_path / "vector")
    ran = steer_cli("fold", "--model", "tiny-vlm", "--method", tmp_path / "vector", "--out", tmp_path / "folded")
    assert ran.code == 1
    assert "task_vector" in ran.err
    assert not (tmp_path / "folded").exists()
