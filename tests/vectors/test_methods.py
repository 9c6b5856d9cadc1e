"""What holds for every method of the package, on every subject."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import steer
from steer.prompts import Prompt, encode
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama

from .subjects import SUBJECTS, subject, word_tokenizer

SETTINGS = {
    "icv": {"strength": 0.5},
    "task_vector": {"shots": 3},
    "function_vector": {"shots": 3, "contexts": 4, "trials": 2, "heads": 3},
}
CASES = [(method, name) for method in SETTINGS for name in SUBJECTS]


def fit(method: str, one, **options):
    return steer.create(method, **SETTINGS[method]).fit(one.model, one.processor, one.examples, **options)


def written(one, *methods, queries=slice(3)):
    """Logits (B, V) of the first new token."""
    inputs = encode(one.model, one.processor, [Prompt(query) for query in one.examples[queries]]).inputs
    with steer.attach(one.model, *methods):
        out = one.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return out.logits[0].float()


@pytest.mark.parametrize("method, name", CASES)
def test_fitting_changes_nothing_in_the_model(method, name):
    one = subject(name)
    weights = {key: value.clone() for key, value in one.model.state_dict().items()}
    before, needs = written(one), [p.requires_grad for p in one.model.parameters()]
    config, hooks = copy.deepcopy(one.model.config.to_dict()), count_hooks(one.model)
    made = fit(method, one)
    assert all(torch.equal(weights[key], value) for key, value in one.model.state_dict().items())
    assert [p.requires_grad for p in one.model.parameters()] == needs
    assert all(p.grad is None for p in one.model.parameters())
    assert one.model.config.to_dict() == config
    assert count_hooks(one.model) == hooks
    assert torch.equal(written(one), before)
    assert not torch.allclose(written(one, made), before, atol=1e-3)


def count_hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("method, name", CASES)
def test_a_seed_decides_everything_and_the_batch_size_nothing(method, name):
    one = subject(name)
    first, again, cut = fit(method, one, seed=7), fit(method, one, seed=7), fit(method, one, seed=7, batch_size=3)
    for key, value in first.tensors.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, again.tensors[key])
        torch.testing.assert_close(value, cut.tensors[key], rtol=1e-3, atol=1e-4)
    assert first.provenance == again.provenance
    assert first.provenance["seed"] == 7


@pytest.mark.parametrize("method, name", CASES)
def test_a_row_of_a_padded_batch_is_the_row_alone(method, name):
    one = subject(name)
    made = fit(method, one)
    together = written(one, made)
    for row in range(3):
        alone = written(one, made, queries=slice(row, row + 1))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method, name", CASES)
def test_saved_and_loaded_it_does_the_same(method, name, tmp_path):
    one = subject(name)
    made = fit(method, one)
    made.save_pretrained(tmp_path)
    loaded = steer.load(tmp_path, one.model)
    assert loaded == made
    assert torch.equal(written(one, loaded), written(one, made))
    with pytest.raises(steer.errors.FingerprintError, match="made for model type"):
        steer.load(tmp_path, FAMILIES["mllama"].model())


@pytest.mark.parametrize("method", SETTINGS)
def test_half_precision(method):
    one = subject("llama")
    half = tiny_llama(pad_token_id=None).to(torch.bfloat16)
    made = steer.create(method, **SETTINGS[method]).fit(half, one.processor, one.examples)
    whole = fit(method, one)
    name = "directions" if method == "icv" else "vector"
    assert all(value.dtype == torch.float32 for value in made.tensors.values())
    if made.tensors.get("layer") == whole.tensors.get("layer"):
        assert torch.cosine_similarity(made.tensors[name].flatten(), whole.tensors[name].flatten(), dim=0) > 0.9
    inputs = encode(half, one.processor, [Prompt(one.examples[0]), Prompt(one.examples[1])]).inputs
    with steer.attach(half, made), torch.no_grad():
        assert half(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("method", SETTINGS)
def test_too_little_is_one_clear_error(method):
    one = subject("llama")

    def message(model=one.model, processor=one.processor, examples=one.examples) -> str:
        with pytest.raises(steer.SteerError) as error:
            steer.create(method).fit(model, processor, examples)
        return str(error.value)

    assert "at least" in message(examples=one.examples[:1])
    assert "got 1" in message(examples=one.examples[:1])
    assert "examples[1] has no answer" in message(examples=[one.examples[0], steer.Example("w6")])
    assert "examples[0] is a str" in message(examples=["w6"])
    assert "processor" in message(processor=None)
    clip = CLIPModel(CLIPConfig(text_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 1}))
    assert "CLIPModel does not write text" in message(model=clip)
    with pytest.raises(steer.SteerError, match=f"{method}.* must be fitted first"):
        steer.attach(one.model, steer.create(method))


@pytest.mark.parametrize("method", SETTINGS)
def test_an_encoder_decoder_is_read_and_steered_where_its_decoder_starts(method):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=3.0)).eval()
    examples, tokenizer = subject("llama").examples, word_tokenizer(padded=True)
    made = steer.create(method, **SETTINGS[method]).fit(model, tokenizer, examples)
    inputs = encode(model, tokenizer, [Prompt(one) for one in examples[:3]]).inputs
    with steer.attach(model, made) as session:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert {line.tower for line in session.report().lines} == {"text"}
