"""tiny-clip: a plain CLIPModel within its limits, whose zero-shot is mediocre; seeded pictures in disjoint splits."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from steer import zoo

torch = pytest.importorskip("torch")

ROOT = zoo.folder("tiny-clip").parent


@pytest.fixture(scope="module")
def loaded():
    torch.set_num_threads(1)
    return zoo.load("tiny-clip")


@pytest.fixture(scope="module")
def food(loaded):
    """Unit image features (N, 128) of fluent food test pictures, and the index of each one's class."""
    model, processor = loaded
    drawn = zoo.labelled("food", "test", 6)
    labels = zoo.classes("food")
    with torch.no_grad():
        images = model.get_image_features(**processor(images=[p for p, _ in drawn], return_tensors="pt")).pooler_output
    return torch.nn.functional.normalize(images, dim=-1), torch.tensor([labels.index(c) for _, c in drawn])


def accuracy(loaded, food, template: str) -> float:
    model, processor = loaded
    texts = [template.format(c) for c in zoo.classes("food")]
    with torch.no_grad():
        text = model.get_text_features(**processor.tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    return (food[0] @ text.div(text.norm(dim=-1, keepdim=True)).T).argmax(1).eq(food[1]).float().mean().item()


def test_importing_and_listing_needs_neither_torch_nor_transformers():
    code = "import sys; from steer import zoo; zoo.picture_sets(); zoo.labelled('food', per_class=1); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_classes_load_a_clip_within_the_limits(loaded):
    model, processor = loaded
    assert type(model).__name__ == "CLIPModel"
    assert type(processor).__name__ == "CLIPProcessor"
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert sum(f.stat().st_size for f in zoo.folder("tiny-clip").iterdir()) <= 8_000_000
    assert sum(f.stat().st_size for f in (ROOT / "emoji").iterdir()) <= 4_000_000
    assert model.logit_scale.exp() <= 100.001
    assert "tiny-clip" in zoo.names()


def test_special_tokens_are_those_of_clip(loaded):
    """eos has the largest id, is another than pad, and every config agrees: else CLIP pools the wrong token."""
    model, processor = loaded
    tokenizer, config = processor.tokenizer, model.config.text_config
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == config.vocab_size - 1 == config.eos_token_id
    assert tokenizer.bos_token_id == config.bos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id != tokenizer.eos_token_id
    assert config.hidden_act == model.config.vision_config.hidden_act == "quick_gelu"
    assert config.max_position_embeddings == tokenizer.model_max_length == 40


def test_a_text_is_pooled_at_its_first_eos_whatever_the_padding(loaded):
    model, processor = loaded
    text = "a photo of a red apple."
    with torch.no_grad():
        short = processor.tokenizer(text, return_tensors="pt")
        padded = processor.tokenizer(text, padding="max_length", return_tensors="pt")
        hidden = model.text_model(**short).last_hidden_state
        last = hidden[0, short["input_ids"][0].tolist().index(processor.tokenizer.eos_token_id)]
        assert padded["input_ids"].shape == (1, 40)
        for inputs in (short, padded):
            found = model.get_text_features(**inputs).pooler_output[0]
            torch.testing.assert_close(found, model.text_projection(last), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["X", "x", "a", "an", "the", "photo", "of", "texture", "type", "A Photo", ".", ","])
def test_the_words_of_prompts_are_single_tokens(loaded, text):
    tokenizer = loaded[1].tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.split())
    assert tokenizer.unk_token_id not in ids


def test_every_class_name_is_known(loaded):
    tokenizer = loaded[1].tokenizer
    for name in zoo.picture_sets():
        labels = zoo.classes(name)
        assert labels == sorted(set(labels))
        assert len({tuple(tokenizer(c)["input_ids"]) for c in labels}) == len(labels)
        assert not any(tokenizer.unk_token_id in tokenizer(c)["input_ids"] for c in labels)
        assert all(re.fullmatch(r"[a-z0-9 ]+", c) for c in labels)


def test_the_processor_normalises_to_minus_one_and_one(loaded):
    picture = zoo.labelled("food", "test", 1)[0][0]
    pixels = loaded[1](images=picture, return_tensors="pt")["pixel_values"][0]
    truth = torch.from_numpy(np.asarray(picture).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, truth, rtol=0, atol=1e-5)


def test_zero_shot_is_mediocre_and_depends_on_the_template(loaded, food):
    templates = ["a photo of a {}.", "an emoji of a {}.", "a {}.", "{}", "x x x x {}."]
    scores = {t: accuracy(loaded, food, t) for t in templates}
    assert 0.3 <= max(scores.values()) <= 0.7, scores
    assert max(scores.values()) - min(scores.values()) >= 0.02, scores


def test_zero_shot_needs_the_names(loaded, food):
    """Shuffled names fall to chance, 1 in 130: the score is not an accident of the order."""
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    shuffled = (food[0], order[food[1]])
    assert accuracy(loaded, shuffled, "a photo of a {}.") <= 0.05


def raw(drawn) -> list[bytes]:
    return [picture.tobytes() for picture, _ in drawn]


@pytest.mark.parametrize("name", zoo.picture_sets())
@pytest.mark.parametrize("style", ["fluent", "noto-v1"])
def test_draws_are_complete(name, style):
    drawn = zoo.labelled(name, "train", 2, style)
    assert [label for _, label in drawn] == [c for c in zoo.classes(name, style) for _ in range(2)]
    assert {(p.size, p.mode) for p, _ in drawn} == {((48, 48), "RGB")}
    assert set(zoo.classes(name, style)) <= set(zoo.classes(name))
    assert len(zoo.classes(name, style)) >= 60


def test_draws_are_seeded():
    assert raw(zoo.labelled("food", "train", 2)) == raw(zoo.labelled("food", "train", 2))
    for split in ("train", "val"):
        assert not set(raw(zoo.labelled("food", split, 2, seed=1))) & set(raw(zoo.labelled("food", split, 2, seed=2)))
    assert raw(zoo.labelled("food", "test", 2, seed=1)) == raw(zoo.labelled("food", "test", 2, seed=2))


def test_fewer_shots_are_the_first_of_more():
    few, many = zoo.labelled("activities", "train", 2), zoo.labelled("activities", "train", 3)
    assert raw(few) == [r for i, r in enumerate(raw(many)) if i % 3 < 2]


def test_no_picture_is_in_two_splits():
    seen = [r for split in ("train", "val", "test") for r in raw(zoo.labelled("smileys", split, 4))]
    assert len(set(seen)) == len(seen)


def test_a_class_looks_like_itself():
    """The mean of eight pictures is nearer to the mean of eight others of its class than to most other classes'."""
    drawn = zoo.labelled("food", "train", 16)
    pixels = np.stack([np.asarray(p, np.float32) for p, _ in drawn]).reshape(130, 16, -1)
    first, second = pixels[:, :8].mean(1), pixels[:, 8:].mean(1)
    first, second = first - first.mean(0), second - second.mean(0)
    distance = ((first[:, None] - second[None]) ** 2).mean(-1)
    assert (distance.argsort(1).argsort(1).diagonal() < 65).mean() >= 0.8


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: zoo.labelled("fod"), "food"),
        (lambda: zoo.labelled("food", "tets"), "test"),
        (lambda: zoo.labelled("food", style="fluet"), "fluent"),
        (lambda: zoo.classes("animal"), "animals"),
        (lambda: zoo.labelled("food", per_class=0), "per_class"),
        (lambda: zoo.labelled("food", seed=-1), "seed"),
    ],
)
def test_errors_name_what_there_is(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_licences_ship():
    text = (ROOT / "emoji" / "ATTRIBUTION.md").read_text()
    index = json.loads((ROOT / "emoji" / "labels.json").read_text())
    for fact in ("Apache-2.0", "MIT License", "Copyright (c) Microsoft Corporation", "Google", *index["styles"]):
        assert fact in text
    for style in index["styles"].values():
        assert (ROOT / "emoji" / style["sheet"]).exists()
    readme = (ROOT / "tiny_clip" / "README.md").read_text()
    for drawn_by in ("Noto", "Twemoji", "EmojiOne", "FxEmojis"):
        assert drawn_by in readme
