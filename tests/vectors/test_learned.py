"""Errors, files, and a planted truth that a fit must find again."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import fitting, prompts
from steer.prompts import Prompt, encode
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama

from .learned import METHODS, at_random, logits_with
from .subjects import subject, word_tokenizer


def fit(method, **options):
    one = subject("llama")
    return method.fit(one.model, one.processor, one.examples, dev=[], progress=False, **options)


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_does_the_same_and_another_model_is_refused(name, tmp_path):
    one = subject("llama")
    made = fit(steer.create(name, shots=2), max_steps=2)
    made.save_pretrained(tmp_path)
    loaded = steer.load(tmp_path, one.model)
    assert loaded == made
    assert loaded.provenance["training"]["steps"] == 2
    ids = torch.tensor([[7, 8, 9, 10]])
    assert torch.equal(logits_with(one.model, ids, None, loaded), logits_with(one.model, ids, None, made))
    with pytest.raises(steer.errors.FingerprintError, match="made for model type"):
        steer.load(tmp_path, FAMILIES["mllama"].model())
    with pytest.raises(steer.errors.FingerprintError, match=r"16.*12|12.*16"):
        steer.load(tmp_path, tiny_llama(head_dim=16))


@pytest.mark.parametrize("name", METHODS)
def test_what_is_wrong_is_one_clear_error(name):
    one = subject("llama")
    with pytest.raises(steer.SteerError, match=f"{name}.* must be fitted first"):
        steer.attach(one.model, steer.create(name))
    with pytest.raises(steer.errors.UnknownNameError, match="'mes'.*did you mean 'mse'"):
        fit(steer.create(name, losses={"mes": 1.0}))
    with pytest.raises(steer.SteerError, match="at least one loss"):
        fit(steer.create(name, losses={}))
    with pytest.raises(steer.errors.UnknownNameError, match="'learning_rate'"):
        fit(steer.create(name), learning_rate=1.0)
    with pytest.raises(steer.SteerError, match="layer.*9"):
        fit(steer.create(name, layers=(9,)), max_steps=1)
    with pytest.raises(steer.SteerError, match="at least 2.*got 1"):
        steer.create(name).fit(one.model, one.processor, one.examples[:1], progress=False)


def sharp_llama():
    """The tiny Llama, sure of what it says: its answers leave little to chance."""
    model = tiny_llama(pad_token_id=None)
    model.lm_head.weight.mul_(4)
    return model


def answered_by(model, planted, count) -> list[steer.Example]:
    """Questions at random with the word that the planted model answers, where it is sure of one."""
    generator, tokenizer = torch.Generator().manual_seed(0), word_tokenizer()
    asked = [" ".join(f"w{i}" for i in torch.randint(6, 90, (1 + k % 3,), generator=generator)) for k in range(count)]
    inputs = encode(model, tokenizer, [Prompt(steer.Example(words)) for words in asked]).inputs
    logits = logits_with(model, inputs["input_ids"], inputs["attention_mask"].bool(), planted)[:, -1]
    (first, second), words = logits.topk(2, dim=-1).values.T, logits.argmax(-1)
    sure = (first - second > 1.5) & (words >= 6) & (words < 90)
    return [steer.Example(asked[i], f"w{int(words[i])}") for i in sure.nonzero().flatten().tolist()]


@pytest.mark.parametrize(
    ("name", "fields", "scale"),
    [
        ("head_shift", {"layers": (1,)}, 1.0),
        ("live", {"layers": (2,), "keep_norm": False, "alpha": 1.0}, 3.0),
    ],
)
def test_a_shift_hidden_in_the_model_that_answered_is_found_again(name, fields, scale):
    model, tokenizer = sharp_llama(), word_tokenizer()
    planted = at_random(name, model, scale=scale, **fields)
    if name == "live":
        planted.tensors["alpha"] = torch.ones(1)
    examples = answered_by(model, planted, 600)
    known, held = examples[:-80], examples[-80:]
    made = steer.create(name, losses={"ce": 1.0}, **fields)
    made.fit(model, tokenizer, known, dev=[], lr=0.2, epochs=12, batch_size=32, progress=False)

    def right(*methods) -> torch.Tensor:
        return fitting.score(model, prompts.batches(model, tokenizer, [Prompt(one) for one in held]), *methods).right

    bare, found = right(), right(made)
    assert right(planted).all()
    assert float(bare.float().mean()) < 0.8
    assert float(found.float().mean()) > 0.9
    assert float(found[~bare].float().mean()) > 0.8
    direction, truth = made.tensors["vector"].flatten(), planted.tensors["vector"].flatten()
    assert float(torch.cosine_similarity(direction, truth, dim=0)) > 0.5
