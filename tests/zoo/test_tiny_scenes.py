"""tiny-scenes: a LLaVA within its limits that answers as recorded, says no, reads, and is misled by what it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steer import zoo
from steer.examples import Example
from steer.prompts import Prompt, encode, write
from steer.zoo._scene_words import NEGATIVES, QUESTIONS, vocabulary


@pytest.fixture(scope="module")
def loaded():
    import torch

    torch.set_num_threads(1)
    return zoo.load("tiny-scenes")


def hundred() -> list:
    """Questions of every kind about the first test scenes with wrong words, 100 in all."""
    scenes = zoo.scenes("test", 20, word="wrong")
    kinds = [(k, "random") for k in ("caption", "where", "colour", "count", "say")] + [("exists", n) for n in NEGATIVES]
    return [zoo.scene_questions(s, *kind)[-1] for s in scenes for kind in kinds][:100]


def test_the_model_is_a_llava_within_its_limits(loaded):
    model, processor = loaded
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert next(model.parameters()).dtype.is_floating_point
    assert not model.training
    assert model.config.text_config.num_key_value_heads < model.config.text_config.num_attention_heads
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert sum(f.stat().st_size for f in zoo.folder("tiny-scenes").iterdir()) <= 6_000_000


def test_every_word_has_its_own_token(loaded):
    tokenizer = loaded[1].tokenizer
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(vocabulary())}
    for q in hundred():
        ids = tokenizer(f"{q.question} {q.answer}")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(f"{q.question} {q.answer}".replace("?", " ?").split())


def test_it_answers_as_recorded(loaded):
    """The file has what the shipped weights said when they were measured; the pictures must be the same too."""
    recorded = json.loads((Path(__file__).parent / "scenes_answers.json").read_text())
    questions = hundred()
    assert [[q.question, q.answer] for q in questions] == [row[:2] for row in recorded]
    said = write(*loaded, [Prompt(q) for q in questions], batch_size=50, max_new_tokens=5)
    assert sum(a == row[2] for a, row in zip(said, recorded, strict=True)) >= 98  # ties may fall otherwise elsewhere


def test_it_says_no_and_reads_and_is_misled(loaded):
    scenes = {kind: zoo.scenes("test", 60, word=kind) for kind in ("none", "wrong")}
    exists = [q for s in scenes["none"] for q in zoo.scene_questions(s, "exists")]
    said = write(*loaded, [Prompt(q) for q in exists], batch_size=60, max_new_tokens=2)
    for answer in ("yes", "no"):
        right = [a == answer for a, q in zip(said, exists, strict=True) if q.answer == answer]
        assert sum(right) / len(right) > 0.7
    read = [zoo.scene_questions(s, "say")[0] for s in scenes["wrong"]]
    assert sum(a == q.answer for a, q in zip(write(*loaded, [Prompt(q) for q in read]), read, strict=True)) > 48
    yes = {}
    for kind, drawn in scenes.items():
        pairs = [(QUESTIONS["exists"].format(w.word), s) for s, w in zip(drawn, scenes["wrong"], strict=True)]
        misled = write(*loaded, [Prompt(Example(q, "no", (s.image,))) for q, s in pairs], max_new_tokens=2)
        yes[kind] = misled.count("yes")
    assert yes["wrong"] > yes["none"] + 6


def test_larger_pictures_are_read_with_more_tokens(loaded):
    """The recipe of docs/tiny-scenes.md runs, and is undone here."""
    model, processor = loaded
    sizes = processor.image_processor.size, processor.image_processor.crop_size
    processor.image_processor.size = {"shortest_edge": 96}
    processor.image_processor.crop_size = {"height": 96, "width": 96}
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "interpolate_pos_encoding": True}), with_kwargs=True
    )
    try:
        query = zoo.scene_questions(zoo.scenes(side=96, n=1)[0], "colour")[0]
        batch = encode(model, processor, [Prompt(query)])
        assert (batch.inputs["input_ids"] == model.config.image_token_id).sum() == 36
        assert write(model, processor, [Prompt(query)]) == [query.answer]
    finally:
        hook.remove()
        processor.image_processor.size, processor.image_processor.crop_size = sizes
