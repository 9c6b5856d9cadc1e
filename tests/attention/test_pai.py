"""PAI against its two readings made one after the other, without a cache, with attention written out."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

import steer
from steer.errors import InterventionError, MappingError
from tests.engine.families import FAMILIES, IMAGE, whole
from tests.vectors.subjects import subject

from .by_hand import Dense, by_hand, greedy, mixed
from .laws import check_decoding, check_neutral, check_saved
from .test_image_focus import left_padded

NEW = 5
OPEN = {"do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}


def pai(**options):
    return steer.create("pai", **{"first_layer": 0, **options})


def truth_of(family, model, inputs, method, layers=(0, 1)):
    """The next token's log-probabilities after a whole sequence."""
    prompt = inputs["input_ids"].shape[1]

    def last(sequence):
        dense = Dense(sequence == IMAGE, prompt, alpha=method.alpha, layers=layers)
        with torch.no_grad():
            with by_hand(model, dense) if method.alpha else nullcontext():
                first = model(**whole(family, inputs, sequence)).logits[:, -1]
            if method.gamma == 1:
                return first.double().log_softmax(-1)
            words = sequence[sequence != IMAGE][None]
            second = model(input_ids=words).logits[:, -1]
        return mixed(first, second, method.gamma, method.plausibility)

    return last


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 1.5, "gamma": 1.0}, {"alpha": 0.0, "gamma": 1.7}, {"alpha": 0.7, "gamma": 0.5, "plausibility": 0.3}],
    ids=["paper", "boost", "contrast", "both"],
)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_written_tokens_are_those_of_two_readings_by_hand(name, options):
    family, method = FAMILIES[name], pai(**options)
    model, inputs = family.model(), family.prompt()
    last = truth_of(family, model, inputs, method)
    wanted, scores = greedy(last, inputs["input_ids"], NEW)
    with steer.attach(model, method):
        got = model.generate(**inputs, max_new_tokens=NEW, **OPEN)
    assert torch.equal(got.sequences, wanted)
    found = torch.stack(got.logits, 1).double().log_softmax(-1)
    torch.testing.assert_close(found, scores, atol=2e-3, rtol=2e-3)
    plain = model(**whole(family, inputs, wanted)).logits[:, -NEW - 1 : -1].double().log_softmax(-1)
    assert (found - plain).abs().max() > 1e-2


def test_pictures_that_cross_attention_reads_are_hidden_too():
    """There the second reading has neither the picture nor its token."""
    family, method = FAMILIES["mllama"], pai(alpha=0.0, gamma=1.5)
    model, inputs = family.model(), family.prompt()
    wanted, _ = greedy(truth_of(family, model, inputs, method), inputs["input_ids"], NEW)
    with steer.attach(model, method):
        got = model.generate(**inputs, max_new_tokens=NEW, **OPEN).sequences
    assert torch.equal(got, wanted)
    assert not torch.equal(got, model.generate(**inputs, max_new_tokens=NEW, **OPEN).sequences)


def test_layers_before_the_first_are_left_alone():
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    last = truth_of(family, model, inputs, pai(alpha=2.0, gamma=1.0), layers=(1,))
    both = truth_of(family, model, inputs, pai(alpha=2.0, gamma=1.0), layers=(0, 1))
    with torch.no_grad(), steer.attach(model, pai(alpha=2.0, gamma=1.0, first_layer=1)):
        got = model(**inputs).logits[:, -1].double().log_softmax(-1)
    torch.testing.assert_close(got, last(inputs["input_ids"]), atol=1e-4, rtol=1e-4)
    assert (got - both(inputs["input_ids"])).abs().max() > 1e-2
    with torch.no_grad(), steer.attach(model, pai(alpha=2.0, gamma=1.0, heads={1: [0, 1, 2, 3]}, first_layer=9)):
        torch.testing.assert_close(model(**inputs).logits[:, -1].double().log_softmax(-1), got)


def test_one_number_for_each_head():
    model, inputs = FAMILIES["llava"].model(), left_padded("llava")
    with torch.no_grad():
        with steer.attach(model, pai(alpha=(0.0, 1.5), heads=((0, 1), (1, 2)), gamma=1.0)):
            first = model(**inputs).logits[:, 1:]
        with steer.attach(model, pai(alpha=1.5, heads=((1, 2),), gamma=1.0)):
            torch.testing.assert_close(first, model(**inputs).logits[:, 1:])


def test_sampling_sees_the_mix_and_never_writes_what_was_cut():
    family, method = FAMILIES["llava"], pai(alpha=0.5, gamma=1.5, plausibility=0.4)
    model, inputs = family.model(), family.prompt()
    given = {**OPEN, "do_sample": True, "num_return_sequences": 6, "max_new_tokens": 3, "top_k": 0}
    with steer.attach(model, method):
        torch.manual_seed(0)
        got = model.generate(**inputs, **given)
    last = truth_of(family, model, inputs, method)
    start, cut = inputs["input_ids"].shape[1], 0
    for row, logits in zip(got.sequences, torch.stack(got.logits, 1), strict=True):
        for i in range(3):
            scores = last(row[None, : start + i])[0]
            torch.testing.assert_close(logits[i].double().log_softmax(-1), scores, atol=2e-3, rtol=2e-3)
            assert scores[row[start + i]].isfinite()
            cut += int(scores.isinf().sum())
    assert cut


@pytest.mark.parametrize("name", ["tiny-vlm", "qwen2_5_vl"])
def test_it_holds_in_every_way_of_decoding(name):
    check_decoding(subject(name), pai(alpha=2.0, gamma=2.0))


def test_beams_are_scored_by_the_mix():
    family, method = FAMILIES["llava"], pai(alpha=0.5, gamma=1.3, plausibility=0.01)
    model, inputs = family.model(), family.prompt(seed=3)
    length = inputs["input_ids"].shape[1]
    with steer.attach(model, method):
        got = model.generate(
            **inputs, max_new_tokens=4, num_beams=3, length_penalty=0.0, output_scores=True, **OPEN
        )  # fmt: skip
    last, row = truth_of(family, model, inputs, method), got.sequences
    total = sum(float(last(row[:, : length + i])[0, row[0, length + i]]) for i in range(4))
    assert float(got.sequences_scores) == pytest.approx(total, abs=1e-3)


def test_a_contrast_costs_a_second_reading_and_no_contrast_none():
    model, inputs = FAMILIES["llava"].model(), FAMILIES["llava"].prompt()
    for method, readings in ((pai(gamma=1.0), 1), (pai(gamma=1.1), 2)):
        count = []
        handle = model.model.language_model.register_forward_hook(lambda *_, count=count: count.append(1))
        with torch.no_grad(), steer.attach(model, method):
            model(**inputs)
        handle.remove()
        assert len(count) == readings


def test_half_precision():
    model, inputs, found = FAMILIES["llava"].model(), left_padded("llava"), []
    method = pai(alpha=0.6, gamma=1.3, plausibility=0.0)
    for dtype in (torch.float32, torch.bfloat16):
        given = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
        with torch.no_grad(), steer.attach(model.to(dtype), method):
            found.append(model(**given).logits[:, -1].float())
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()


def test_neutral_settings_change_no_bit():
    one = subject("tiny-vlm")
    check_neutral(one, pai(alpha=0.0, gamma=1.0))
    check_neutral(one, pai(alpha=(0.0, 0.0), heads=((0, 1), (1, 2)), gamma=1.0))


def test_words_without_a_picture_keep_their_order():
    """Both readings are the same then, and only what is implausible goes."""
    model, words = FAMILIES["llava"].model(), {"input_ids": torch.tensor([[5, 9, 11, 40]])}
    with torch.no_grad():
        plain = model(**words).logits
        with steer.attach(model, pai(alpha=2.0, gamma=3.0)):
            got = model(**words).logits
    kept = plain >= plain.amax(-1, keepdim=True) + math.log(0.1)
    assert torch.equal(got.isfinite(), kept)
    torch.testing.assert_close(got[kept], plain[kept], rtol=1e-4, atol=1e-4)


def test_the_setting_that_answers_best_is_chosen_and_saved(tmp_path):
    """A model is asked for the answers that it gives under one setting: that one must win."""
    one = subject("tiny-vlm")
    queries = [*one.examples, *steer.zoo.examples("colour", "dev", n=16)]
    written = pai(alpha=0.2, gamma=1.5).answer(one.model, one.processor, queries)
    asked = [steer.Example(q.question, w, q.images) for q, w in zip(queries, written, strict=True) if w]
    method = pai(alpha=None, gamma=None).fit(one.model, one.processor, asked, progress=False)
    tried, accuracy = method.tensors["tried"], method.tensors["accuracy"]
    assert tried.shape == (15, 2)
    assert float(accuracy[tried.tolist().index(torch.tensor([0.2, 1.5]).tolist())]) == 1.0
    chosen = torch.stack([method.tensors["alpha"], method.tensors["gamma"]])
    assert float(accuracy[tried.tolist().index(chosen.tolist())]) == accuracy.max()
    check_saved(one, method, tmp_path / "both")
    half = pai(alpha=None, gamma=1.0).fit(one.model, one.processor, asked, budget=3, seed=1, progress=False)
    assert set(half.tensors) == {"alpha", "tried", "accuracy"}
    assert half.tensors["tried"].tolist()[0] == [0.0, 1.0]
    assert len(half.tensors["tried"]) == 3
    check_saved(one, half, tmp_path / "half")


def test_models_that_cannot_hide_a_token_take_the_boost_alone():
    model, inputs = FAMILIES["qwen3_5"].model(), FAMILIES["qwen3_5"].prompt()
    with pytest.raises(MappingError, match="carry a state past"), steer.attach(model, pai()):
        pass
    with torch.no_grad():
        plain = model(**inputs).logits
        with steer.attach(model, pai(alpha=3.0, gamma=1.0)):
            got = model(**inputs).logits
    assert (got[:, -1] - plain[:, -1]).abs().max() > 1e-3
    torch.testing.assert_close(got[:, :-1], plain[:, :-1])


def test_errors():
    one, text = subject("tiny-vlm"), subject("llama")
    for wrong in ({"gamma": 0.0}, {"gamma": math.nan}, {"alpha": math.inf}, {"plausibility": 1.2}, {"first_layer": -1}):
        with pytest.raises(InterventionError, match=next(iter(wrong))):
            pai(**wrong)
    with pytest.raises(InterventionError, match="the last layer of LlavaForConditionalGeneration .* is 1"):
        steer.attach(FAMILIES["llava"].model(), steer.create("pai"))
    with pytest.raises(steer.SteerError, match="needs no fitting"):
        pai().fit(one.model, one.processor, one.examples)
    with pytest.raises(steer.SteerError, match="must be fitted first"):
        steer.attach(one.model, pai(gamma=None))
    with pytest.raises(steer.SteerError, match="budget"):
        pai(alpha=None).fit(one.model, one.processor, one.examples, budget=0)
    with pytest.raises(steer.SteerError, match="has no answer"):
        pai(alpha=None).fit(one.model, one.processor, [steer.Example("what ?")])
    with pytest.raises(MappingError, match="image"), steer.attach(text.model, pai(gamma=1.0)):
        text.model(torch.tensor([[5, 6, 7]]))
