"""The zoo: the shipped model loads, fits its limits, takes many pictures and still answers; pictures are complete."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from steer import zoo
from steer.examples import Example
from steer.zoo._words import ATTRIBUTES, OBJECTS, VALUES, held_out_pair, vocabulary

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("tiny-vlm")


def chat(examples: list[Example]) -> list[dict]:
    """Demonstrations as turns with answers; an example without an answer as the last user turn."""
    turns = []
    for example in examples:
        content = [{"type": "image"}] * len(example.images) + [{"type": "text", "text": example.question}]
        turns.append({"role": "user", "content": content})
        if example.answer:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": example.answer}]})
    return turns


def inputs_for(processor, prompts: list[list[Example]]):
    text = [processor.apply_chat_template(chat(p), add_generation_prompt=True) for p in prompts]
    images = [[image for example in p for image in example.images] for p in prompts]
    return processor(images=images, text=text, padding=True, return_tensors="pt")


def accuracy(loaded, task: str, shots: int, n: int) -> float:
    model, processor = loaded
    queries = zoo.examples(task, "test", n, seed=1)
    prompts = [
        [*zoo.examples(task, "demo", shots, seed=i), Example(q.question, "", q.images)] for i, q in enumerate(queries)
    ]
    inputs = inputs_for(processor, prompts)
    out = model.generate(**inputs, max_new_tokens=2, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    said = processor.batch_decode(out, skip_special_tokens=True)
    return sum(s.split()[:1] == [q.answer] for s, q in zip(said, queries, strict=True)) / len(queries)


def test_import_needs_neither_torch_nor_transformers_from_the_zoo():
    code = "import sys, steer; before = set(sys.modules); import steer.zoo; new = set(sys.modules) - before; "
    code += "steer.zoo.tasks(); steer.zoo.names(); assert not {'torch', 'transformers', 'PIL'} & new, new"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_auto_classes_load_a_llava_within_the_limits(loaded):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(zoo.folder())
    processor = AutoProcessor.from_pretrained(zoo.folder())
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert next(model.parameters()).dtype == torch.float32
    text = model.config.text_config
    assert text.num_key_value_heads < text.num_attention_heads
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    assert sum(f.stat().st_size for f in zoo.folder().iterdir()) <= 8_000_000
    assert sum(f.stat().st_size for f in (zoo.folder().parent / "pictures").iterdir()) <= 1_500_000
    assert not loaded[0].training


def test_names_and_unknown_names():
    assert zoo.names() == ["tiny-vlm", "tiny-clip", "tiny-scenes"]
    with pytest.raises(ValueError, match="tiny-vlm"):
        zoo.load("no-such-model")
    with pytest.raises(ValueError, match="plain:colour"):
        zoo.examples("no-such-task")
    with pytest.raises(ValueError, match="demo"):
        zoo.pictures("train")


def test_chat_template_renders_the_trained_format(loaded):
    _, processor = loaded
    image = zoo.pictures("test")[0][0]
    shots = [Example("?", "red", (image,)), Example("What is it?", "cat", (image, image)), Example("?", "", (image,))]
    text = processor.apply_chat_template(chat(shots), add_generation_prompt=True)
    assert text == "<image>? red<end><image><image>What is it? cat<end><image>?"
    ids = processor(images=[image] * 4, text=text, return_tensors="pt")["input_ids"][0].tolist()
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    picture = ["<image>"] * 9
    end = ["cat", "<end>", *picture, "?"]
    assert words == [*picture, "?", "red", "<end>", *picture, *picture, "what", "is", "it", "?", *end]


def test_every_word_has_its_own_token(loaded):
    tokenizer = loaded[1].tokenizer
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(vocabulary())}
    for task in zoo.tasks():
        for example in zoo.examples(task, "dev", 40):
            assert len(tokenizer(example.answer)["input_ids"]) == 1
            assert tokenizer.unk_token_id not in tokenizer(example.question + example.answer)["input_ids"]


def test_left_padded_batch_of_many_pictures_equals_single_prompts(loaded):
    model, processor = loaded
    prompts = [
        [
            *zoo.examples("colour", "demo", k, seed=k),
            *(Example("?", "", e.images) for e in zoo.examples("colour", "test", 1, k)),
        ]
        for k in (0, 3, 8)
    ]
    with torch.no_grad():
        batch = inputs_for(processor, prompts)
        assert batch["pixel_values"].shape == (1 + 4 + 9, 3, 48, 48)
        together = model(**batch).logits[:, -1]
        for row, prompt in enumerate(prompts):
            alone = model(**inputs_for(processor, [prompt])).logits[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)


def test_sixteen_shots_fit_the_trained_length(loaded):
    model, processor = loaded
    prompt = [*zoo.examples("kind", "demo", 16), Example("?", "", zoo.examples("kind", "test", 1)[0].images)]
    inputs = inputs_for(processor, [prompt])
    assert inputs["input_ids"].shape[1] == 16 * 12 + 10 <= model.config.text_config.max_position_embeddings


@pytest.mark.parametrize(("task", "floor"), [("plain:colour", 0.97), ("plain:position", 0.95), ("plain:object", 0.72)])
def test_plain_questions_are_answered(loaded, task, floor):
    assert accuracy(loaded, task, 0, 96) >= floor


@pytest.mark.parametrize(("task", "floor"), [("colour", 0.95), ("count", 0.9), ("if-animal", 0.88)])
def test_eight_demonstrations_tell_the_task(loaded, task, floor):
    assert accuracy(loaded, task, 8, 48) >= floor


def test_without_demonstrations_the_bare_query_is_a_guess(loaded):
    assert sum(accuracy(loaded, task, 0, 32) for task in ("colour", "count", "kind")) / 3 <= 0.5


def test_pictures_are_complete_and_their_splits_disjoint():
    assert len(OBJECTS) >= 60
    seen = {}
    for split, least in (("demo", 64), ("dev", 64), ("test", 200)):
        found = zoo.pictures(split)
        assert len(found) >= least
        for image, labels in found:
            assert image.size == (48, 48)
            assert list(labels) == ATTRIBUTES
            assert all(labels[a] in VALUES[a] for a in ATTRIBUTES)
            assert labels["kind"] == OBJECTS[labels["object"]][0]
            assert seen.setdefault(image.tobytes(), split) == split
        assert {labels["object"] for _, labels in found} == set(OBJECTS)
    assert len(seen) == sum(len(zoo.pictures(s)) for s in ("demo", "dev", "test"))
    assert any(held_out_pair(labels) for _, labels in zoo.pictures("test"))


def test_examples_are_seeded_distinct_and_balanced():
    assert zoo.examples("colour", "test", 20, seed=3) == zoo.examples("colour", "test", 20, seed=3)
    assert zoo.examples("colour", "test", 20, seed=3) != zoo.examples("colour", "test", 20, seed=4)
    assert len({e.images[0].tobytes() for e in zoo.examples("object", "test")}) == len(zoo.pictures("test"))
    answers = [e.answer for e in zoo.examples("is-animal", "demo", 16)]
    assert answers.count("yes") == 8
    exists = zoo.examples("plain:exists", "test", 20)
    assert sum(e.answer == "yes" for e in exists) == 10
    assert all(e.question == "?" for e in zoo.examples("if-big", "demo", 4))


def test_tasks_say_what_they_are():
    tasks = zoo.tasks()
    assert sum(t["headline"] for t in tasks.values()) >= 6
    assert tasks["if-animal"]["headline"]
    assert {t["split"] for t in tasks.values()} == {"trained", "held-out"}
    assert all(t["about"] for t in tasks.values())
