"""`steer generate` says what the model says, steered or not."""

from __future__ import annotations

import json

import pytest
import torch

import steer
from tests.files.toy import Toy, ToyPlugin

EXAMPLE = steer.zoo.examples("plain:colour", n=1)[0]


@pytest.fixture
def picture(tmp_path):
    EXAMPLE.images[0].save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def by_hand() -> str:
    """The same question through transformers alone."""
    model, processor = steer.zoo.load("tiny-vlm")
    content = [{"type": "image", "image": EXAMPLE.images[0]}, {"type": "text", "text": EXAMPLE.question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=text, images=[EXAMPLE.images[0]], return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_the_answer_is_what_the_model_gives_by_hand(steer_cli, picture):
    arguments = (
        "generate",
        "--model",
        "tiny-vlm",
        "--prompt",
        EXAMPLE.question,
        "--image",
        picture,
        "--max-new-tokens",
        3,
    )
    ran = steer_cli(*arguments)
    assert ran.code == 0, ran.err
    assert ran.out.strip() == by_hand()
    data = json.loads(steer_cli(*arguments, "--json").out)
    assert data == {"model": "tiny-vlm", "prompt": EXAMPLE.question, "methods": [], "answer": by_hand(), "report": None}


def test_a_method_is_given_by_name_with_its_fields(steer_cli, picture):
    method = ("--method", "head_mask", "--config", "heads=[[3,1]]")
    ran = steer_cli(
        "generate", "--model", "tiny-vlm", "--prompt", EXAMPLE.question, "--image", picture, *method, "--json"
    )
    assert ran.code == 0, ran.err
    assert [line["layer"] for line in json.loads(ran.out)["report"]["interventions"]] == [3]


def test_tokens_are_drawn_only_when_asked_for_and_by_the_seed(steer_cli, picture):
    asked = ("generate", "--model", "tiny-vlm", "--prompt", EXAMPLE.question, "--image", picture, "--max-new-tokens", 4)
    drawn = [steer_cli(*asked, "--temperature", 50, "--seed", seed).out for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    # The likeliest token alone is left to be drawn.
    assert steer_cli(*asked, "--top-p", 1e-6, "--seed", 5).out == steer_cli(*asked).out
    assert "--temperature 0" in steer_cli(*asked, "--temperature", 0).err


def test_a_saved_method_changes_the_answer_and_the_report_says_where(steer_cli, picture, plugged, tmp_path):
    plugged(ToyPlugin())
    model, _ = steer.zoo.load("tiny-vlm")
    toy = Toy(strength=1e3)
    toy.tensors = {"vectors": torch.randn(4, 192, generator=torch.Generator().manual_seed(0))}
    toy.record_provenance(steer.inspect(model), 0, "noise")
    toy.save_pretrained(tmp_path / "toy")
    arguments = ("generate", "--model", "tiny-vlm", "--prompt", EXAMPLE.question, "--image", picture, "--json")
    ran = steer_cli(*arguments, "--method", tmp_path / "toy")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert data["answer"] != by_hand()
    assert [line["layer"] for line in data["report"]["interventions"]] == [0, 1, 2, 3]


def test_a_method_for_another_model_is_refused_with_the_difference(steer_cli, plugged, tmp_path):
    from tests.files.toy import fitted

    plugged(ToyPlugin())
    fitted().save_pretrained(tmp_path / "toy")
    ran = steer_cli("generate", "--model", "tiny-vlm", "--prompt", "x", "--method", tmp_path / "toy")
    assert ran.code == 1
    assert "width 8, here 192" in ran.err


def test_a_model_without_words_says_so(steer_cli, tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    ran = steer_cli("generate", "--model", tmp_path, "--prompt", "x")
    assert ran.code == 1
    assert "ViTModel does not write text" in ran.err
