"""Heads silenced or held at their mean, against edited weights and plain hooks on one unpadded prompt at a time."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

import steer
from steer.errors import UnknownNameError
from tests.vectors.gating import inputs_of
from tests.vectors.subjects import SUBJECTS, passing, subject

from .laws import check_decoding, check_half, check_neutral, check_saved, hooked, steered_alone, width_of

PAIRS = ((1, 1), (0, 3), (1, 0))


@cache
def fitted(name: str, where: str) -> steer.Method:
    one = subject(name)
    method = steer.create("head_mask", heads=PAIRS, to="mean", where=where)
    return method.fit(one.model, one.processor, one.examples, batch_size=3, progress=False)


def mean_by_hand(one, layer: int, head: int, where: str) -> torch.Tensor:
    """(d_v,) in fp64, from prompts read alone."""
    width = width_of(one)
    found = []
    for index in range(len(one.examples)):
        module = one.layers[layer].self_attn.o_proj
        o = passing(module, one.model, inputs_of(one, index), before=True)[0].double()
        o = o[:, head * width : (head + 1) * width]
        found.append(o.mean(0) if where == "all" else o[-1])
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("name", SUBJECTS)
def test_zero_is_the_same_as_removing_the_projections_columns(name):
    one, width = subject(name), width_of(subject(name))
    inputs = inputs_of(one, 1)
    places = [one.layers[layer].self_attn.o_proj for layer, _ in PAIRS]
    before = [copy.deepcopy(place.weight.data) for place in places]
    try:
        for place, (_, head) in zip(places, PAIRS, strict=True):
            place.weight.data[:, head * width : (head + 1) * width] = 0
        with torch.no_grad():
            truth = one.model(**inputs).logits[0]
    finally:
        for place, weight in zip(places[::-1], before[::-1], strict=True):
            place.weight.data = weight
    got = steered_alone(one, steer.create("head_mask", heads=PAIRS), 1)
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


@pytest.mark.parametrize("where", ["all", "answer", "last_prompt"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_mean_is_that_of_prompts_read_alone_and_stands_where_it_should(name, where):
    one, width, method = subject(name), width_of(subject(name)), fitted(name, where)
    means = {pair: mean_by_hand(one, *pair, where) for pair in PAIRS}
    for layer, heads in ((0, [3]), (1, [1, 0])):
        truth = torch.stack([means[layer, head] for head in heads])
        got = method.tensors[f"means.{layer}"]
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))
    rows = slice(None) if where == "all" else slice(-1, None)

    def change(layer):
        def put(o):
            for (at, head), mean in means.items():
                if at == layer:
                    o[rows, head * width : (head + 1) * width] = mean.to(o.dtype)

        return put

    truth = hooked(one, inputs_of(one, 2), {layer: change(layer) for layer in (0, 1)})
    got = steered_alone(one, method, 2)
    torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))
    assert (got - steered_alone(one, steer.create("head_mask", heads=PAIRS, where=where), 2)).abs().max() > 1e-3


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_holds_in_every_way_of_decoding(name):
    check_decoding(subject(name), steer.create("head_mask", heads={0: [0, 1, 2], 1: [1, 2, 3]}, where="answer"))
    many = steer.create("head_mask", heads={0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}, to="mean")
    one = subject(name)
    check_decoding(one, many.fit(one.model, one.processor, one.examples, progress=False))


def test_half_precision_saving_and_a_head_held_where_it_is(tmp_path):
    one = subject("llama")
    check_half(fitted("llama", "all"), one)
    check_saved(one, fitted("llama", "answer"), tmp_path / "mean")
    check_saved(one, steer.create("head_mask", heads=PAIRS), tmp_path / "zero")
    silent = copy.deepcopy(one)
    silent.layers[1].self_attn.v_proj.weight.data.zero_()
    check_neutral(silent, steer.create("head_mask", heads={1: list(range(8))}))


def test_an_encoder_decoder_is_masked_in_its_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    from tests.vectors.subjects import word_tokenizer

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=3.0)).eval()
    tokenizer = word_tokenizer(padded=True)
    method = steer.create("head_mask", heads=((1, 2),), to="mean")
    method.fit(model, tokenizer, subject("llama").examples, progress=False)
    found, start = [], torch.zeros(1, 1, dtype=torch.long)
    for one in subject("llama").examples:
        batch = steer.prompts.encode(model, tokenizer, [steer.prompts.Prompt(one)])
        with steer.record(model, steer.sites.head_out(1, 2)) as acts, torch.no_grad():
            model(**batch.inputs, decoder_input_ids=start)
        found.append(acts["head_out", 1].flatten())
    torch.testing.assert_close(method.tensors["means.1"], torch.stack(found).mean(0)[None], rtol=1e-3, atol=1e-4)


BAD = [({"to": "men"}, "'mean'"), ({"where": "answr"}, "'answer'")]


@pytest.mark.parametrize(("config", "says"), BAD)
def test_unknown_names_are_refused_with_the_nearest(config, says):
    with pytest.raises(UnknownNameError, match=says):
        steer.create("head_mask", **config)


def test_what_is_missing_is_named():
    one = subject("llama")
    mean = steer.create("head_mask", heads=PAIRS, to="mean")
    with pytest.raises(steer.SteerError, match="must be fitted first"):
        steer.attach(one.model, mean)
    with pytest.raises(steer.SteerError, match="at least 1 example"):
        mean.fit(one.model, one.processor, [])
    with pytest.raises(steer.SteerError, match="processor"):
        mean.fit(one.model, None, one.examples)
    with pytest.raises(steer.SteerError, match="needs no fitting"):
        steer.create("head_mask", heads=PAIRS).fit(one.model, one.processor, one.examples)
