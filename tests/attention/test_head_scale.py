"""Heads times a factor, against output projections whose weights were edited by hand; and how heads are written."""

from __future__ import annotations

import copy

import pytest
import torch

import steer
from steer.errors import InterventionError, MappingError, UnknownNameError
from tests.vectors.gating import inputs_of
from tests.vectors.subjects import SUBJECTS, subject

from .laws import check_decoding, check_half, check_neutral, check_saved, hooked, steered_alone, width_of

PAIRS, FACTORS = ((1, 1), (0, 3), (1, 0)), (-1.5, 0.0, 3.0)


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_is_the_same_as_scaling_the_projections_columns(name):
    one, width = subject(name), width_of(subject(name))
    edited = copy.deepcopy(one.model)
    layers = [dict(edited.named_modules())[path] for path in paths(one)]
    for (layer, head), factor in zip(PAIRS, FACTORS, strict=True):
        layers[layer].self_attn.o_proj.weight.data[:, head * width : (head + 1) * width] *= factor
    inputs = inputs_of(one, 1)
    with torch.no_grad():
        truth = edited(**inputs).logits[0]
    got = steered_alone(one, steer.create("head_scale", heads=PAIRS, factor=FACTORS), 1)
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def paths(one) -> list[str]:
    return [path for layer in one.layers for path, module in one.model.named_modules() if module is layer]


@pytest.mark.parametrize("where", ["answer", "last_prompt", "all"])
def test_where_says_which_tokens(where):
    one, width = subject("llama"), width_of(subject("llama"))
    inputs = inputs_of(one, 1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[9, 10]])], dim=1)
    length = inputs["input_ids"].shape[1]
    rows = {"answer": slice(length - 3, None), "last_prompt": slice(length - 3, length - 2), "all": slice(None)}[where]

    def change(o):
        o[rows, 2 * width : 3 * width] *= 4.0

    truth = hooked(one, inputs, {1: change})
    method = steer.create("head_scale", heads=((1, 2),), factor=4.0, where=where)
    with torch.no_grad(), steer.attach(one.model, method, prompt_length=length - 2):
        got = one.model(**inputs).logits[0]
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_holds_in_every_way_of_decoding(name):
    check_decoding(subject(name), steer.create("head_scale", heads={0: [0, 1, 2], 1: 1}, factor=-3.0, where="answer"))


def test_half_precision_saving_and_neutrality(tmp_path):
    one = subject("llama")
    method = steer.create("head_scale", heads=PAIRS, factor=FACTORS)
    check_half(method, one)
    check_saved(one, method, tmp_path)
    check_neutral(one, steer.create("head_scale"))
    check_neutral(one, steer.create("head_scale", heads=PAIRS, factor=(1.0, 1.0, 1.0)))


class Map:
    """A head map of which two heads are known."""

    def top(self, k):
        return [(2, 7), (0, 1)][:k]


WRITTEN = [
    ("all", "all"),
    ([[1, 0], [0, 3]], ((1, 0), (0, 3))),
    ({1: [0, 2], 0: 3}, ((1, 0), (1, 2), (0, 3))),
    ({"1": [0, 2]}, ((1, 0), (1, 2))),
    (torch.tensor([[1, 0], [0, 3]]), ((1, 0), (0, 3))),
    (Map(), ((2, 7), (0, 1))),
    (((-1, -2),), ((-1, -2),)),
]


@pytest.mark.parametrize(("given", "kept"), WRITTEN)
def test_every_way_of_writing_heads_becomes_one(given, kept):
    assert steer.create("head_scale", heads=given, factor=0.5).heads == kept


def test_negative_numbers_count_from_the_end():
    one = subject("llama")
    got = steered_alone(one, steer.create("head_scale", heads=((-1, -2),), factor=0.0), 0)
    assert torch.equal(got, steered_alone(one, steer.create("head_scale", heads=((2, 6),), factor=0.0), 0))


def test_factors_follow_the_order_in_which_heads_were_written():
    one = subject("llama")
    method = steer.create("head_scale", heads=PAIRS, factor=FACTORS)
    other = steer.create("head_scale", heads=PAIRS[::-1], factor=FACTORS[::-1])
    assert torch.equal(steered_alone(one, method, 0), steered_alone(one, other, 0))
    every = [1.0] * 24
    for (layer, head), factor in zip(PAIRS, FACTORS, strict=True):
        every[8 * layer + head] = factor
    got = steered_alone(one, steer.create("head_scale", factor=tuple(every)), 0)
    torch.testing.assert_close(got, steered_alone(one, method, 0))


BAD = [
    ({"heads": ()}, InterventionError, "no heads"),
    ({"heads": ((0, 1), (0, 1))}, InterventionError, "head 1 of layer 0"),
    ({"heads": "al"}, InterventionError, "'al'"),
    ({"heads": (3, 4)}, InterventionError, "3"),
    ({"heads": ((0, 1.5),)}, InterventionError, r"1\.5"),
    ({"heads": ((0, True),)}, InterventionError, "True"),
    ({"heads": ((0, 1),), "factor": (1.0, 2.0)}, InterventionError, "2 numbers for 1 heads"),
    ({"factor": float("nan")}, InterventionError, "nan"),
    ({"factor": "x"}, InterventionError, "'x'"),
    ({"where": "answr"}, UnknownNameError, "'answer'"),
]


@pytest.mark.parametrize(("config", "kind", "says"), BAD)
def test_what_makes_no_sense_is_refused_at_once(config, kind, says):
    with pytest.raises(kind, match=says):
        steer.create("head_scale", **config)


MISSING = [
    (((0, 9),), UnknownNameError, "head 9 of layer 0.*8 heads.*nearest: 7"),
    (((3, 0),), UnknownNameError, "layer 3.*3 layers.*nearest: 2"),
    (((-4, 0),), UnknownNameError, "layer -4.*nearest: 0"),
    (((2, 0), (-1, 0)), InterventionError, "head 0 of layer 2 is meant twice"),
]


@pytest.mark.parametrize(("heads", "kind", "says"), MISSING)
def test_heads_that_a_model_does_not_have_are_named_with_the_nearest(heads, kind, says):
    with pytest.raises(kind, match=says):
        steer.attach(subject("llama").model, steer.create("head_scale", heads=heads, factor=0.0))


def test_layers_without_attention_heads_are_passed_over_or_named():
    from tests.engine.families import FAMILIES

    model = FAMILIES["mllama"].model()
    layers = steer.inspect(model).tower().layers
    missing = [one.index for one in layers if one.attention is None]
    assert missing
    with steer.attach(model, steer.create("head_scale", factor=0.5), strict=False) as session:
        assert {line.layer for line in session.report().lines} == {one.index for one in layers} - {*missing}
    with pytest.raises((UnknownNameError, MappingError), match=f"layer {missing[0]}.*nearest"):
        steer.attach(model, steer.create("head_scale", heads=((missing[0], 0),), factor=0.5))


def test_all_heads_with_too_few_factors_is_an_error_with_both_numbers():
    with pytest.raises(InterventionError, match="2 numbers.*24"):
        steer.attach(subject("llama").model, steer.create("head_scale", factor=(1.0, 2.0)))


def test_fitting_it_says_that_there_is_nothing_to_fit():
    one = subject("llama")
    with pytest.raises(steer.SteerError, match="needs no fitting"):
        steer.create("head_scale").fit(one.model, one.processor, one.examples)
