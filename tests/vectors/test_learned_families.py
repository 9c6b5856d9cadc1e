"""Every learned method on every kind of model: it fits, acts on the text tower alone, and padding changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf

import steer
from steer.prompts import Prompt, encode
from tests.engine.helpers import tokens

from .learned import METHODS, at_random, logits_with
from .seeing import NAMES, seeing

# BLIP's text attention is its own: neither its log-sum-exp nor more keys can be had there.
UNREACHABLE = [("mimic", "blip"), ("hificl", "blip")]
CASES = [(method, name) for method in METHODS for name in NAMES if (method, name) not in UNREACHABLE]


# Its encoder counts padding in its learned positions, with steer and without.
PADDING_MATTERS = ("florence2",)


def written(name, *methods, rows=slice(4), dtype=torch.float32, count=2):
    """Logits (B, V, count) of the first new tokens of some bare queries, and whether they were padded.

    Two, since a decoder of its own has a single key at its first token, whose score means nothing.
    """
    model, processor, examples = seeing(name)
    if dtype != torch.float32:
        model = copy.deepcopy(model).to(dtype)
    inputs = encode(model, processor, [Prompt(one) for one in examples[rows]]).inputs
    with steer.attach(model, *methods) as session:
        out = model.generate(
            **inputs, max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert {line.tower for line in session.report().lines} <= {"text"}
    return torch.stack(out.logits, -1).float(), not inputs["attention_mask"].all()


@pytest.mark.parametrize(("method", "name"), CASES)
def test_it_lowers_its_own_loss_and_leaves_the_model_alone(method, name):
    model, processor, examples = seeing(name)
    before, _ = written(name)
    needs = [weight.requires_grad for weight in model.parameters()]
    made = steer.create(method, shots=2)
    made.fit(model, processor, examples, dev=[], max_steps=3, eval_every=1, lr=2e-2, progress=False)
    history = made.provenance["training"]["history"]
    first, *_, last = (sum(made.losses[term] * entry[term] for term in made.losses) for entry in history)
    assert last < first
    for key, value in made.tensors.items():
        assert value.dtype == torch.float32, key
        assert value.isfinite().all(), key
        assert not value.requires_grad, key
    assert [weight.requires_grad for weight in model.parameters()] == needs
    assert torch.equal(written(name)[0], before)
    assert (written(name, made)[0] - before).abs().max() > 1e-4


@pytest.mark.parametrize(("method", "name"), [case for case in CASES if case[1] not in PADDING_MATTERS])
def test_a_row_of_a_batch_padded_on_the_left_is_the_row_alone(method, name):
    made = at_random(method, seeing(name)[0], scale=0.3)
    together, padded = written(name, made)
    assert padded
    for row in range(4):
        alone, _ = written(name, made, rows=slice(row, row + 1))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "blip", "mllama"])
@pytest.mark.parametrize("method", ["icv", "live"])
def test_half_precision_in_a_padded_batch_of_four_is_each_row_alone(method, name):
    """Rounding may differ between shapes; it must stay far below what the method does."""
    model, processor, examples = seeing(name)
    if method == "icv":
        made = steer.create("icv", strength=0.5).fit(model, processor, examples)
    else:
        made = at_random("live", model)
    half = torch.bfloat16
    (bare, padded), (together, _) = written(name, dtype=half, count=1), written(name, made, dtype=half, count=1)
    assert padded
    effect = (together - bare).square().mean().sqrt()
    assert effect > 0.02 * bare.square().mean().sqrt()
    for row in range(4):
        alone, _ = written(name, made, rows=slice(row, row + 1), dtype=half, count=1)
        assert (together[row] - alone[0]).square().mean().sqrt() < 0.1 * effect


@pytest.mark.parametrize(("method", "name"), UNREACHABLE)
def test_what_cannot_be_reached_is_named(method, name):
    model, processor, examples = seeing(name)
    with pytest.raises(steer.errors.MappingError, match=r"text_decoder\S*attention.self .*registry"):
        steer.create(method, shots=2).fit(model, processor, examples, dev=[], max_steps=1, progress=False)
    assert not any(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("method", ["head_shift", "mimic", "hyper_icl", "hificl"])
def test_layers_without_softmax_attention_are_left_out(method):
    """The hybrid has it in one layer of four; mllama's cross-attention layers have none of their own."""
    for name, having in (("qwen3_5", [3]), ("mllama", [0, 2])):
        model, _, _ = seeing(name)
        made = at_random(method, model)
        layers = {index for one in made.interventions(steer.inspect(model)) for index in one.site.layers}
        assert sorted(layers) == having


def two_widths() -> hf.Gemma4ForCausalLM:
    """Heads of width 8 in layers 0 and 2, of width 16 in layers 1 and 3, half of the layers with a window."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 101, "sliding_window": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    none = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    layer_types = ["sliding_attention", "full_attention"] * 2
    config = hf.Gemma4TextConfig(**sizes, **heads, **special, **none, layer_types=layer_types)
    return hf.Gemma4ForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("method", METHODS)
def test_layers_with_heads_of_another_shape_have_tensors_of_their_own(method, tmp_path):
    model, ids = two_widths(), tokens(2, 9)
    made = at_random(method, model)
    assert method == "live" or {key.rsplit(".")[-1] for key in made.tensors} == {"0", "1"}
    made.record_provenance(steer.inspect(model), 0, "at random")
    made.save_pretrained(tmp_path)
    steered, bare = logits_with(model, ids, None, steer.load(tmp_path, model)), logits_with(model, ids, None)
    assert torch.equal(steered, logits_with(model, ids, None, made))
    for layers in ((0, 2), (1, 3)):
        if method == "live":
            break
        part = at_random(method, model, layers=layers)
        assert not any("." in key for key in part.tensors)
        assert (logits_with(model, ids, None, part) - bare).abs().max() > 1e-2
    _, processor, examples = seeing("llama")
    fitted = steer.create(method, losses={"ce": 1.0})
    fitted.fit(model, processor, examples, dev=[], max_steps=4, eval_every=1, lr=2e-2, progress=False)
    history = fitted.provenance["training"]["history"]
    assert history[-1]["ce"] < history[0]["ce"]
    assert fitted.tensors.keys() == made.tensors.keys()


def test_chosen_heads_must_have_one_width():
    with pytest.raises(steer.errors.InterventionError, match=r"\{0: 8, 1: 16\}"):
        at_random("head_shift", two_widths(), heads=((0, 1), (1, 0)))
