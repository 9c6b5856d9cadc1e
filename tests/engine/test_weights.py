"""The site `attention` against transformers' eager weights, and against softmax by hand where something is added."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import ops, positions, sites
from steer.errors import InterventionError, MappingError, UnknownNameError

from .families import FAMILIES
from .helpers import HEAD_DIM, HEADS, KV_HEADS, LAYERS, randn, tiny_llama, tokens

SELF = ["llava", "qwen2_5_vl", "mllama", "qwen3_5", "florence2"]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SELF)
def test_weights_are_those_that_eager_attention_shows(name: str, implementation: str) -> None:
    family = FAMILIES[name]
    inputs = family.prompt()
    decoder = {"decoder_input_ids": torch.tensor([[2, 7, 9]])} if name == "florence2" else {}
    shown = family.model("eager")(**inputs, **decoder, output_attentions=True)
    truth = list(shown.decoder_attentions if decoder else shown.attentions)
    model = family.model(implementation)
    with steer.record(model, sites.attention()) as acts:
        model(**inputs, **decoder)
    layers = [key.layer for key in acts]
    assert layers
    # Layers of another kind (linear, cross) either have no entry in what transformers shows, or another place.
    matching = truth if len(truth) == len(layers) else [truth[layer] for layer in layers]
    for layer, wanted in zip(layers, matching, strict=True):
        torch.testing.assert_close(acts["attention", layer], wanted, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["mllama", "florence2"])
def test_cross_attention_is_over_the_keys_of_the_other_side(name: str) -> None:
    family = FAMILIES[name]
    inputs = family.prompt()
    decoder = {"decoder_input_ids": torch.tensor([[2, 7, 9]])} if name == "florence2" else {}
    model = family.model("sdpa")
    site = {"attention": "cross"}
    with steer.record(model, sites.attention(**site), sites.head_q(**site), sites.head_k(**site)) as acts:
        model(**inputs, **decoder)
    layer = next(key.layer for key in acts if key.site == "attention")
    key = ("text", "cross")
    query, keys = acts["head_q", layer, *key], acts["head_k", layer, *key]
    scores = query.double() @ keys.double().repeat_interleave(query.shape[1] // keys.shape[1], 1).transpose(-1, -2)
    wanted = (scores * query.shape[-1] ** -0.5).softmax(-1)
    torch.testing.assert_close(acts["attention", layer, *key].double(), wanted, atol=1e-6, rtol=1e-4)


WINDOWS = ["llama", "mistral", "gemma2", "gpt_oss"]


def windowed(name: str, implementation: str) -> torch.nn.Module:
    """Plain, with windows, with windows and capped scores, with windows and sinks."""
    import transformers as hf

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 99,
        "initializer_range": 0.4,
    }
    torch.manual_seed(0)
    if name == "llama":
        model = tiny_llama(implementation=implementation)
    elif name == "mistral":
        model = hf.MistralForCausalLM(hf.MistralConfig(**sizes, sliding_window=4))
    elif name == "gemma2":
        config = hf.Gemma2Config(**sizes, sliding_window=4, attn_logit_softcapping=2.0)
        model = hf.Gemma2ForCausalLM(config)
    else:
        model = hf.GptOssForCausalLM(
            hf.GptOssConfig(**sizes, sliding_window=4, num_local_experts=2, num_experts_per_tok=1)
        )
        torch.nn.init.normal_(model.model.layers[0].self_attn.sinks)
    model.set_attn_implementation(implementation)
    return model.eval()


@pytest.mark.parametrize("rows", ["last", "one", "some", "differing", "all"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_rows_by_themselves_see_what_they_see_among_all(name: str, padded: bool, rows: str) -> None:
    ids = tokens(2, 9) % 90 + 3
    mask = torch.ones_like(ids)
    mask[1, : 3 * padded] = 0
    chosen = {
        "last": positions.last_prompt(),
        "one": positions.index(2),
        "some": positions.index(1, 4),
        "differing": positions.mask(torch.arange(9)[None] >= torch.tensor([[4], [6]])),
        "all": None,
    }[rows]
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    truth = windowed(name, "eager")(**given, output_attentions=True).attentions
    # SDPA leaves out the caps of the one and is not there for the other.
    model = windowed(name, "sdpa" if name in ("llama", "mistral") else "eager")
    with steer.record(model, sites.attention(positions=chosen)) as acts:
        model(**given)
    real = places.masked_fill(mask == 0, -1)
    at = {
        "last": real == real.amax(1, keepdim=True),
        "one": real == 2,
        "some": (real == 1) | (real == 4),
        "differing": torch.arange(9)[None] >= torch.tensor([[4], [6]]),
        "all": mask.bool(),
    }[rows]
    for layer, weights in enumerate(truth):
        found = acts["attention", layer]
        if found.ndim == 4:  # rows of one slice: (B, H, R, S)
            found = found.transpose(1, 2)
            found = found[at] if rows == "all" else found.flatten(0, 1)
        wanted = weights.transpose(1, 2)[at]
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-4)


def by_hand(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The last row's softmax in fp64: query (B, H, T, d), key (B, H_kv, S, d), bias (..., S) -> (B, H, 1, S)."""
    keys = key.double().repeat_interleave(HEADS // KV_HEADS, dim=1)
    scores = query[:, :, -1:].double() @ keys.transpose(-1, -2) * HEAD_DIM**-0.5
    return (scores + bias(scores)).softmax(-1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("relative", [False, True])
def test_what_a_session_adds_to_the_scores_is_seen(implementation: str, relative: bool) -> None:
    model, ids = tiny_llama(implementation=implementation), tokens()
    raise_keys = ops.KeyBias(1.5, positions.span(2, 5), relative=relative)
    change = steer.Intervention(sites.key_bias(layers=1, heads=[0, 3], positions=positions.answer()), raise_keys)
    last = sites.attention(layers=1, positions=positions.last_prompt())
    with steer.attach(model, change), steer.record(model, last, sites.head_q(1), sites.head_k(1)) as acts:
        model(ids)
    heads = torch.zeros(HEADS, 1, 1)
    heads[[0, 3]] = 1
    keys = torch.zeros(9)
    keys[2:5] = 1

    def bias(scores: torch.Tensor) -> torch.Tensor:
        return 1.5 * heads * keys * (scores.abs() if relative else 1)

    wanted = by_hand(acts["head_q", 1], acts["head_k", 1], bias)
    torch.testing.assert_close(acts["attention", 1].double(), wanted, atol=1e-5, rtol=1e-4)
    plain = by_hand(acts["head_q", 1], acts["head_k", 1], torch.zeros_like)
    assert (plain - wanted).abs().max() > 0.05


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_keys_put_in_front_are_the_first_columns(implementation: str) -> None:
    model, ids = tiny_llama(implementation=implementation), tokens()
    front, values = randn(KV_HEADS, 4, HEAD_DIM, seed=3), randn(KV_HEADS, 4, HEAD_DIM, seed=4)
    change = steer.Intervention(sites.kv_prefix(layers=0), ops.Prefix(front, values))
    last = sites.attention(layers=0, positions=positions.last_prompt())
    with steer.attach(model, change), steer.record(model, last, sites.head_q(0), sites.head_k(0)) as acts:
        model(ids)
    keys = torch.cat([front.expand(2, -1, -1, -1), acts["head_k", 0]], dim=2)
    wanted = by_hand(acts["head_q", 0], keys, torch.zeros_like)
    assert acts["attention", 0].shape == (2, HEADS, 1, 13)
    torch.testing.assert_close(acts["attention", 0].double(), wanted, atol=1e-5, rtol=1e-4)


def test_the_forward_is_the_same_and_rows_past_the_prompt_are_not_read() -> None:
    model, ids = tiny_llama(), tokens(1, 9)
    plain = model.generate(ids, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with steer.record(model, sites.attention(positions=positions.last_prompt())) as acts:
        read = model.generate(ids, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, read.logits, strict=True))
    assert len(acts) == LAYERS
    assert [len(acts.steps("attention", layer)) for layer in range(LAYERS)] == [1] * LAYERS
    with steer.record(model, sites.attention(0, positions=positions.generated())) as acts:
        model.generate(ids, max_new_tokens=4, do_sample=False)
    assert [step.shape[-2:] for step in acts.steps("attention", 0)] == [(1, 10), (1, 11), (1, 12)]


def test_chosen_heads_and_padded_rows() -> None:
    model, ids = tiny_llama(), tokens()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    part = sites.attention(2, heads=[6, 1], positions=positions.last_prompt())
    with steer.record(model, sites.attention(2), part, dtype=torch.float64) as acts:
        model(ids, attention_mask=mask)
    whole, chosen = acts.steps("attention", 2)
    # One row of each is chosen by a mask, so that the rows come first and their axis is gone.
    assert torch.equal(chosen, whole[:, [6, 1], -1])
    assert (chosen[1, :, :3] == 0).all()
    torch.testing.assert_close(chosen.sum(-1), torch.ones(2, 2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_weights_can_be_read_and_not_written() -> None:
    with pytest.raises(InterventionError, match="attention"):
        steer.Intervention(sites.attention(), ops.Add(torch.zeros(3)))
    with pytest.raises(MappingError, match="registry"), steer.record(FAMILIES["blip"].model(), sites.attention()):
        pass
    with pytest.raises(UnknownNameError), steer.record(tiny_llama(), sites.attention(heads=[HEADS])):
        pass
