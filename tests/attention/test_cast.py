"""A behaviour under a condition against plain hooks on one prompt at a time, in every way a prompt can come by."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import steer
from steer.errors import InterventionError, UnknownNameError
from steer.prompts import Prompt
from tests.engine.helpers import randn, tiny_llama
from tests.vectors.gating import inputs_of, state, steered, written
from tests.vectors.subjects import SUBJECTS, Inputs, Subject, passing, subject, word_tokenizer

from .laws import COUNT, NO_PICTURES, ROWS, batch_of, check_decoding, check_half, check_neutral, check_saved


@cache
def scored(name: str, pool: str = "mean", similarity: str = "cast", where: str = "all"):
    """A fitted method whose threshold splits the three prompts, and where it acts, as plain hooks say."""
    one = subject(name)
    given = one.examples
    wrong = [replace(e, answer=given[i - 3].answer) for i, e in enumerate(given)]
    config = {"layers": (1,), "layer": 1, "pool": pool, "similarity": similarity, "where": where, "strength": 3.0}
    method = steer.create("cast", **config)
    lists = {"against": wrong, "when": given[:4], "otherwise": given[4:]}
    method.fit(one.model, one.processor, given, **lists, batch_size=3, progress=False)
    c = method.tensors["direction"].double()
    scores = []
    for index in ROWS:
        h = state(one, inputs_of(one, index), 1, pool)
        other = torch.tanh((h @ c) / (c @ c) * c) if similarity == "cast" else c
        scores.append(float(h @ other / (h.norm() * other.norm())))
    method.tensors["threshold"] = torch.tensor(sum(sorted(scores)[1:]) / 2)  # one acts
    method.tensors["below"] = torch.tensor(0.0)
    return one, method, [score > float(method.tensors["threshold"]) for score in scores]


def alone(one: Subject, inputs: Inputs, method: steer.Method, act: bool) -> torch.Tensor:
    """Logits (T, V) of one prompt and what was written after it, under a plain hook in all its tokens."""
    shifts = [(0, 3.0 * method.tensors["behaviour"][0])] if act else []
    return steered(one, inputs, shifts, 0)


def greedy(one: Subject, inputs: Inputs, method: steer.Method, act: bool) -> list[int]:
    """What is written after one prompt, by whole forwards without a cache."""
    inputs, found = dict(inputs), []
    ends = one.model.generation_config.eos_token_id
    for _ in range(COUNT):
        logits = alone(one, inputs, method, act)[-1]
        logits[[*NO_PICTURES["suppress_tokens"], *([] if ends is None else [ends])]] = -torch.inf
        found.append(int(logits.argmax()))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([found[-1:]])], dim=1)
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if key in inputs:
                inputs[key] = torch.nn.functional.pad(inputs[key], (0, 1), value=value)
    return found


@pytest.mark.parametrize(("pool", "similarity"), [("mean", "cast"), ("last", "cosine")])
@pytest.mark.parametrize("name", SUBJECTS)
def test_each_row_of_a_padded_batch_is_steered_as_its_own_prompt_decides(name, pool, similarity):
    one, method, acts = scored(name, pool, similarity)
    assert sum(acts) == 1
    truth = [greedy(one, inputs_of(one, i), method, act) for i, act in zip(ROWS, acts, strict=True)]
    with steer.attach(one.model, method):
        assert written(one, batch_of(one), COUNT, **NO_PICTURES) == truth
        assert written(one, batch_of(one, ROWS[::-1]), COUNT, **NO_PICTURES) == truth[::-1]
    assert method.decide(one.model, one.processor, [one.examples[i] for i in ROWS], batch_size=2) == acts


@pytest.mark.parametrize("name", SUBJECTS)
def test_logits_are_those_of_hand_hooked_prompts(name):
    one, method, acts = scored(name)
    for index, act in zip(ROWS, acts, strict=True):
        inputs = inputs_of(one, index)
        with steer.attach(one.model, method), torch.no_grad():
            got = one.model(**inputs).logits[0]
        truth, other = (alone(one, inputs, method, choice) for choice in (act, not act))
        torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()))
        assert (got - other).abs().max() > 1e-2


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("where", ["all", "answer"])
def test_it_holds_in_every_way_of_decoding(name, where):
    one, method, _ = scored(name, where=where)
    strong = replace(method)
    strong.tensors = {**method.tensors, "strength": torch.tensor(30.0)}
    check_decoding(one, strong)


def test_rows_that_are_not_chosen_keep_every_bit():
    one, method, acts = scored("llama")
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_llama(pad_token_id=None, implementation="eager").to(dtype)
        inputs = batch_of(one).inputs
        with torch.no_grad():
            plain = model(**inputs).logits
            with steer.attach(model, method):
                got = model(**inputs).logits
        real = inputs["attention_mask"].bool()
        same = [torch.equal(a[m], b[m]) for a, b, m in zip(got, plain, real, strict=True)]
        assert same == [not act for act in acts]


def test_half_precision_saving_and_neutrality(tmp_path):
    one, method, _ = scored("llama")
    always = replace(method)
    always.tensors = {**method.tensors, "threshold": torch.tensor(-2.0)}
    strong = replace(method)
    strong.tensors = {**always.tensors, "strength": torch.tensor(30.0)}
    check_half(strong, one)
    check_saved(one, method, tmp_path)
    neutral = replace(method)
    neutral.tensors = {**always.tensors, "strength": torch.tensor(0.0)}
    check_neutral(one, neutral)
    never = replace(method)
    never.tensors = {**method.tensors, "threshold": torch.tensor(2.0)}
    check_neutral(one, never)


def test_two_models_and_two_sessions_share_no_decision():
    """The decision of one model's prompt, in the middle of another's generation, changes nothing there."""
    one, method, acts = scored("llama")
    other = tiny_llama(pad_token_id=None)
    truth = [greedy(one, inputs_of(one, i), method, act) for i, act in zip(ROWS, acts, strict=True)]
    yes, no = (inputs_of(one, ROWS[acts.index(which)]) for which in (True, False))

    class Between:
        """A logits processor that reads a prompt of the opposite kind with the other model."""

        def __call__(self, ids, scores):
            with torch.no_grad():
                other(**no)
                other(**yes)
            return scores

    with steer.attach(one.model, method), steer.attach(other, method):
        for index, row in zip(ROWS, truth, strict=True):
            got = written(one, batch_of(one, (index,)), COUNT, logits_processor=[Between()], **NO_PICTURES)
            assert got == [row]


@pytest.mark.parametrize("direction", ["principal", "mean_difference"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_behaviour_carries_one_mean_to_the_other_along_its_direction(name, direction):
    one = subject(name)
    given = one.examples
    wrong = [replace(e, answer=given[i - 3].answer) for i, e in enumerate(given)]
    method = steer.create("cast", layers=(0, 1), layer=0, direction=direction)
    method.fit(
        one.model,
        one.processor,
        given,
        against=wrong,
        when=given[:4],
        otherwise=given[4:],
        progress=False,
        batch_size=3,
    )
    for layer in (0, 1):
        act, rest = (
            torch.stack(
                [
                    passing(one.layers[layer], one.model, one.by_hand(Prompt(e, answered=True)), before=True)[0, -1]
                    for e in some
                ]
            ).double()
            for some in (given, wrong)
        )
        difference = act.mean(0) - rest.mean(0)
        if direction == "mean_difference":
            truth = difference
        else:
            both = torch.cat([act, rest]) - (act.mean(0) + rest.mean(0)) / 2
            _, vectors = torch.linalg.eigh(both.T @ both)
            truth = vectors[:, -1] * (vectors[:, -1] @ difference)
        got = method.tensors["behaviour"][layer].double()
        torch.testing.assert_close(got, truth, rtol=1e-2, atol=1e-3 * float(truth.norm()))


def planted(scale: float):
    """A llama in whose embeddings the words from w50 on point one way."""
    model, tokenizer = tiny_llama(pad_token_id=None), word_tokenizer()
    model.get_input_embeddings().weight.data[50:90] += scale * torch.nn.functional.normalize(randn(64, seed=11), dim=0)
    generator = torch.Generator().manual_seed(1)

    def examples(low: int, high: int, count: int) -> list[steer.Example]:
        words = torch.randint(low, high, (count, 3), generator=generator).tolist()
        return [steer.Example(" ".join(f"w{i}" for i in row[: 1 + n % 3]), f"w{6 + n}") for n, row in enumerate(words)]

    return model, tokenizer, examples


@pytest.mark.parametrize("swapped", [False, True])
def test_a_planted_condition_is_found_and_holds_for_new_prompts(swapped):
    model, tokenizer, examples = planted(3.0)
    sets = [examples(50, 90, 12), examples(6, 50, 12)]
    when, otherwise = sets[::-1] if swapped else sets
    method = steer.create("cast", layers=(2,))
    method.fit(model, tokenizer, sets[0], when=when, otherwise=otherwise, progress=False)
    assert float(method.tensors["f1"]) == 1.0
    assert int(method.tensors["layer"]) <= 2
    unseen = method.decide(model, tokenizer, [*examples(50, 90, 10), *examples(6, 50, 10)])
    assert unseen == [not swapped] * 10 + [swapped] * 10


def test_layer_and_strength_are_chosen_by_what_was_held_out():
    one = subject("llama")
    given = one.examples
    wrong = [replace(e, answer=given[i - 3].answer) for i, e in enumerate(given)]
    lists = {"when": given[:4], "otherwise": given[4:], "seed": 5, "progress": False}
    method = steer.create("cast", layers=None, strength=None)
    method.fit(one.model, one.processor, given, against=wrong, **lists)
    assert method.tensors["accuracy_layers"].shape == (2,)
    assert method.tensors["accuracy_strength"].shape == (5,)
    pool, held = steer.fitting.hold_out(given, seed=5)
    rest = [e for e in wrong if e.question not in {h.question for h in held}]
    again = steer.create("cast", layers=None, strength=None)
    again.fit(one.model, one.processor, pool, against=rest, dev=held, **lists)
    assert all(torch.equal(again.tensors[key], method.tensors[key]) for key in method.tensors)
    # What was chosen is the best of all that was tried, tried here one by one.
    layer = int(method.tensors["layers"])
    scores = {}
    for number in (0.5, 1.0, 2.0, 4.0, 8.0):
        shifts = [(layer - 1, number * method.tensors["behaviour"][0])]
        total = 0.0
        for e in held:
            tokens = one.processor(e.answer)["input_ids"]
            inputs = one.by_hand(Prompt(e))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens[:-1]]).long()], dim=1)
            logits = steered(one, inputs, shifts, 0)[-len(tokens) :].log_softmax(-1)
            total += float(logits[range(len(tokens)), tokens].sum())
        scores[number] = total
    # A random model answers nothing right, so that probability alone decides.
    assert not method.tensors["accuracy_strength"].any()
    assert float(method.tensors["strength"]) == max(scores, key=scores.get)


BAD = [
    ({"similarity": "cosin"}, UnknownNameError, "cosine"),
    ({"direction": "principle"}, UnknownNameError, "principal"),
    ({"pool": "men"}, UnknownNameError, "mean"),
    ({"where": "al"}, UnknownNameError, "all"),
    ({"layers": ()}, InterventionError, "empty"),
]


@pytest.mark.parametrize(("config", "kind", "says"), BAD)
def test_what_makes_no_sense_is_refused_at_once(config, kind, says):
    with pytest.raises(kind, match=says):
        steer.create("cast", **config)


def test_what_is_missing_is_named():
    one = subject("llama")
    given = one.examples
    lists = {"when": given[:4], "otherwise": given[4:], "progress": False}

    def fit(*, examples=given, processor=one.processor, options=lists, **config):
        config = {"layers": (1,), **config}
        return steer.create("cast", **config).fit(one.model, processor, examples, **options)

    with pytest.raises(steer.SteerError, match="must be fitted first"):
        steer.attach(one.model, steer.create("cast"))
    with pytest.raises(steer.SteerError, match=r"otherwise.*at least 2.*got 0"):
        fit(options={"when": given[:4]})
    with pytest.raises(steer.SteerError, match=r"when.*at least 2.*got 0"):
        fit(options={})
    with pytest.raises(InterventionError, match=r"layer 2.*layer 1"):
        fit(layer=2)
    with pytest.raises(UnknownNameError, match="layer '7'"):
        fit(layers=(1, 7))
    with pytest.raises(UnknownNameError, match="layer '-1'"):
        fit(layers=(-1,))
    with pytest.raises(steer.SteerError, match="processor"):
        fit(processor=None)
    with pytest.raises(steer.SteerError, match=r"at least 4.*got 3"):
        fit(examples=given[:3], layers=None)
