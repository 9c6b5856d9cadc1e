"""In-context learning: what is kept, what is shown, and the average over orders against a loop by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import steer
from steer import Example
from steer.prompts import Prompt, write
from steer_vectors._packed import from_bytes, pack, unpack
from tests.engine.families import FAMILIES

from .subjects import SUBJECTS, last_logits, subject, word_tokenizer


def fitted(one, **fields):
    return steer.create("icl", **{"shots": 3, **fields}).fit(one.model, one.processor, one.examples[:6])


def same(first: Example, second: Example) -> bool:
    """Equal words, pictures of one kind with equal content."""
    pairs = list(zip(first.images, second.images, strict=True))
    alike = all(type(a) is type(b) and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    return (first.question, first.answer) == (second.question, second.answer) and alike


@pytest.mark.parametrize("name", SUBJECTS)
def test_saved_and_loaded_it_shows_the_same(name, tmp_path):
    one = subject(name)
    method, queries = fitted(one, order="fixed", orders=2, template=None), one.examples[5:]
    method.save_pretrained(tmp_path)
    loaded = steer.load(tmp_path)
    assert loaded == method
    for before, after in zip(one.examples, loaded.demonstrations().pool, strict=False):
        assert same(before, after)
    for mine, kept in zip(method.prompts(queries), loaded.prompts(queries), strict=True):
        assert all(same(a, b) for a, b in zip(mine.shots, kept.shots, strict=True))
    assert loaded.answer(one.model, one.processor, queries) == method.answer(one.model, one.processor, queries)


def test_it_fits_any_model(tmp_path):
    one = subject("llama")
    fitted(one).save_pretrained(tmp_path)
    loaded = steer.load(tmp_path, FAMILIES["mllama"].model())
    assert loaded.provenance["data"]["examples"] == 6


@pytest.mark.parametrize("name", SUBJECTS)
def test_with_one_order_it_is_what_the_model_writes_after_the_prompt(name):
    one = subject(name)
    method, queries = fitted(one), one.examples[4:]
    shown = steer.Demonstrations(one.examples[:6], shots=3).for_queries(queries)
    truth = write(one.model, one.processor, shown)
    assert method.answer(one.model, one.processor, queries, batch_size=2) == truth
    bare = write(one.model, one.processor, [Prompt(query) for query in queries])
    assert truth != bare


def mean_by_hand(one, orders: list[Prompt], steps: int) -> list[int]:
    """Greedy tokens from the mean of log-probabilities, one unpadded prompt at a time, in full forwards."""
    inputs = [dict(one.by_hand(prompt)) for prompt in orders]
    tokens: list[int] = []
    for _ in range(steps):
        table = torch.stack([last_logits(one.model, each).double().log_softmax(-1) for each in inputs]).mean(0)
        tokens.append(int(table.argmax()))
        for each in inputs:
            for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
                if key in each:
                    new = {"input_ids": tokens[-1], "attention_mask": 1}.get(key, 0)
                    each[key] = torch.cat([each[key], torch.tensor([[new]])], dim=1)
    return tokens


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("name", SUBJECTS)
def test_several_orders_write_the_token_of_highest_mean_log_probability(name, batch_size):
    one = subject(name)
    method, queries = fitted(one, orders=3), one.examples[5:8]
    answers = method.answer(one.model, one.processor, queries, batch_size=batch_size, max_new_tokens=3)
    groups = method.demonstrations().prompts(queries)
    tokenizer = getattr(one.processor, "tokenizer", one.processor)
    eos = one.model.generation_config.eos_token_id
    for said, group in zip(answers, groups, strict=True):
        tokens = mean_by_hand(one, group, 3)
        if eos in tokens:
            tokens = tokens[: tokens.index(eos)]
        assert said == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_where_there_are_fewer_orders_than_asked_for_the_mean_is_over_those():
    one = subject("llama")
    method = fitted(one, shots=1, orders=5)
    single = fitted(one, shots=1)
    queries = one.examples[6:]
    both = [m.answer(one.model, one.processor, queries) for m in (method, single)]
    assert both[0] == both[1]


def test_similar_reaches_the_model_through_answer():
    one = subject("tiny-vlm")
    method, queries = fitted(one, choose="similar", order="fixed"), one.examples[5:]
    by_hand = steer.Demonstrations(one.examples[:6], 3, "similar", "fixed")
    shown = by_hand.for_queries(queries, one.model, one.processor)
    assert method.answer(one.model, one.processor, queries) == write(one.model, one.processor, shown)
    with pytest.raises(steer.SteerError, match="similar"):
        method.prompts(queries)


def test_its_template_is_used_for_writing():
    one = subject("llama")
    template = "w50 {question} w51 {answer} w52 "
    method, queries = fitted(one, template=template), one.examples[6:]
    shown = method.prompts(queries)
    answers = method.answer(one.model, one.processor, queries)
    assert answers == write(one.model, one.processor, shown, template=template)
    assert answers != write(one.model, one.processor, shown)


def test_it_touches_nothing_and_an_encoder_decoder_answers_too():
    from transformers import T5Config, T5ForConditionalGeneration

    one = subject("llama")
    assert fitted(one).interventions(steer.inspect(one.model)) == []
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=3.0)).eval()
    method = steer.create("icl", shots=2, orders=2).fit(model, word_tokenizer(padded=True), one.examples)
    assert len(method.answer(model, word_tokenizer(padded=True), one.examples[:3])) == 3


def test_it_teaches_tiny_vlm_a_task_that_the_bare_query_does_not_say():
    one = subject("tiny-vlm")
    method = steer.create("icl", shots=6).fit(one.model, one.processor, steer.zoo.examples("colour", "demo", n=24))
    queries = steer.zoo.examples("colour", "dev", n=24)
    answers = method.answer(one.model, one.processor, queries)
    assert sum(said == query.answer for said, query in zip(answers, queries, strict=True)) >= 20


PICTURES = [
    *(Image.effect_noise((7, 5), 90).convert(mode) for mode in ("L", "LA", "RGB", "RGBA")),
    torch.randn(3, 4).to(torch.bfloat16),
    np.arange(12, dtype=np.float32).reshape(3, 4),
]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: getattr(p, "mode", type(p).__name__))
def test_pictures_come_back_as_they_were(picture):
    (one,) = unpack(pack([Example("q", "ä", (picture,))]))
    assert (one.question, one.answer) == ("q", "ä")
    (again,) = one.images
    assert type(again) is type(picture) or isinstance(again, Image.Image)
    if isinstance(picture, torch.Tensor):
        assert again.dtype == picture.dtype
        assert torch.equal(again, picture)
    else:
        assert np.array_equal(np.asarray(again), np.asarray(picture))
        assert getattr(again, "mode", None) == getattr(picture, "mode", None)


def test_a_palette_becomes_the_colours_it_stands_for():
    picture = Image.effect_noise((7, 5), 90).convert("RGB").quantize(4)
    (one,) = unpack(pack([Example("q", "a", (picture,))]))
    assert np.array_equal(np.asarray(one.images[0]), np.asarray(picture.convert("RGB")))


def test_what_cannot_be_kept_or_read_is_said():
    one = subject("tiny-vlm")
    with pytest.raises(steer.SteerError, match=r"a str cannot be.*PIL\.Image\.open"):
        steer.create("icl").fit(one.model, one.processor, [Example("q", "a", ("cat.png",))])
    with pytest.raises(steer.SteerError, match="must be fitted first"):
        steer.create("icl").answer(one.model, one.processor, one.examples)
    with pytest.raises(steer.SteerError, match="did you mean 'similar'"):
        steer.create("icl", choose="simlar")
    damaged = steer.create("icl")
    for text in (b"[", b"{}x", b'[["q"]]', b'[["q", "a", ["image"]]]', b"[1]"):
        damaged.tensors = {"examples": torch.tensor(list(text), dtype=torch.uint8)}
        with pytest.raises(steer.errors.FileFormatError):
            damaged.demonstrations()
    with pytest.raises(steer.errors.FileFormatError):
        from_bytes(torch.tensor([255], dtype=torch.uint8))
