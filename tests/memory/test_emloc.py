"""EMLoC against its equations, and what each mend of it is for."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steer
from steer import memory, zoo
from steer.memory import Memory, Words, answer_logits
from steer.memory.method import batches
from steer.memory.reading import answer_inputs
from steer_memory._importance import Observer, always_kept, answer_slots, pooled
from steer_memory._search import Limits, Trials, _bisect, _Chooser
from steer_memory.emloc import EMLoC
from tests.engine.helpers import tiny_llama, tokens
from tests.vectors.seeing import seeing


@pytest.fixture(scope="module")
def vlm() -> tuple[Any, Any]:
    return zoo.load()


@pytest.fixture(scope="module")
def shots() -> list[steer.Example]:
    return zoo.examples("colour", "demo", 8)


def js64(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The Jensen-Shannon divergence of each row as the textbook has it, in fp64."""
    p, q = first.double().softmax(-1), second.double().softmax(-1)
    m = (p + q) / 2
    return ((torch.special.xlogy(p, p / m) + torch.special.xlogy(q, q / m)).sum(-1)) / 2


def test_importance_is_the_mass_that_predicting_rows_give_to_each_key() -> None:
    """Against fp64 over recorded queries and keys, with grouped heads and rows that are padding."""
    model, context, asked = tiny_llama(), tokens(1, 7), tokens(3, 5, seed=2)
    whole = Memory.empty(model).read(model, {"input_ids": context})
    rows = torch.zeros(3, 5, dtype=torch.bool)
    rows[0, 3:], rows[1, 2:], rows[2, 4:] = True, True, True
    from steer.memory import masks
    from steer.memory._asking import placed

    inputs = placed(model, whole, {"input_ids": asked}, generating=False)
    observer = Observer(whole, 0, rows, True)
    with masks(model), steer.attach(model, observer.interventions(), prompt_length=12, measure="none"):
        with steer.record(model, steer.sites.head_q(), steer.sites.head_k()) as acts:
            model(**inputs, past_key_values=whole.cache(3, model))
    hidden = torch.ones(5, 12, dtype=torch.bool).triu(8)
    for layer in range(3):
        q = acts["head_q", layer].double()
        k = acts["head_k", layer].double().repeat_interleave(4, dim=1)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        truth = (weights * rows[:, None, :, None]).sum((0, 2))[:, :7].view(2, 4, 7).sum(1)
        torch.testing.assert_close(observer.scores[layer].double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_pooling_is_a_mean_over_neighbours_with_zeros_outside(kernel) -> None:
    scores = torch.rand(2, 9)
    padded = torch.nn.functional.pad(scores, (kernel // 2, kernel // 2))
    truth = torch.stack([padded[:, i : i + kernel].mean(1) for i in range(9)], dim=1)
    torch.testing.assert_close(pooled(scores, kernel), truth)


def test_every_accepted_state_holds_the_bound(vlm, shots) -> None:
    """The divergence is measured again, from complete forwards in fp64, after the search."""
    model, processor = vlm
    words = Words(model, processor)
    for method in (
        EMLoC(max_divergence=0.01),
        EMLoC.published(max_divergence=0.01),
        EMLoC(max_divergence=0.01, group=2),
    ):
        made = method.build(model, processor, shots, chunk=8, progress=False, certify=False)
        whole = memory.read(model, processor, shots, chunk=8)
        found = [js64(answer_logits(model, whole, b), answer_logits(model, made, b)) for b in batches(words, shots)]
        reached = float(torch.cat(found).mean())
        assert reached <= 0.01
        assert reached == pytest.approx(made.info["search"][0]["divergence"], abs=1e-5)
        assert sum(made.share().values()) < 0.5 * len(made.share())


def test_trials_begin_at_their_layer_and_count_what_they_cost(vlm, shots) -> None:
    model, processor = vlm
    whole = memory.read(model, processor, shots, chunk=8)
    nothing = torch.zeros(whole.length, dtype=torch.bool)
    trials = Trials(EMLoC(), model, whole, [Words(model, processor).questions(shots)], Limits(nothing, nothing, 0))
    assert trials.exact
    assert trials.divergence(whole, 3) == 0.0
    keep = torch.zeros(1, 2, whole.length, dtype=torch.bool)
    keep[..., 0] = True
    pruned = whole.keep({2: keep})
    short = trials.divergence(pruned, 2)
    trials.exact = False
    assert short == pytest.approx(trials.divergence(pruned, 2), abs=1e-7)
    assert short > 1e-5
    assert (trials.count, trials.layers_run) == (3, 1 + 2 + 4)


def test_an_end_to_end_bound_is_held_by_the_certificate(vlm) -> None:
    model, processor = vlm
    shots = zoo.examples("colour", "demo", 16)
    part = EMLoC(max_divergence=0.005, special=True).build(model, processor, shots, chunk=4, progress=False)
    end = EMLoC(max_divergence=0.005, special=True, end_to_end=True).build(
        model, processor, shots, chunk=4, progress=False
    )
    assert part.info["certificate"]["calibration"]["mean"] > 0.005, "parts add up: the test needs a case where they do"
    assert end.info["certificate"]["calibration"]["mean"] <= 0.005
    assert end.nbytes > part.nbytes


@pytest.mark.parametrize(("unit", "budget"), [("share", 0.25), ("tokens", 24.0), ("bytes", 24 * 4 * 2 * 64 * 4)])
def test_a_budget_is_met_in_its_unit(vlm, shots, unit, budget) -> None:
    """8 demonstrations are 96 tokens; tiny-vlm has 4 layers of 2 heads of 32."""
    made = EMLoC(budget=budget, unit=unit).build(*vlm, shots, chunk=4, progress=False, certify=False)
    assert {made.kept(layer).width for layer in made.places} == {24}


def test_answers_do_not_drive_out_the_first_token(vlm, shots) -> None:
    """Published, a small budget goes to answers alone; mended, the first token and the best others stay."""
    model, processor = vlm
    old = EMLoC.published(budget=0.08).build(model, processor, shots, chunk=8, progress=False, certify=False)
    new = EMLoC(budget=0.2).build(model, processor, shots, chunk=8, progress=False, certify=False)
    answers = answer_slots(old, 0, [Words(*vlm).questions(shots)])
    for layer in old.places:
        assert bool(answers[old.kept(layer).slots].all())
        assert bool((new.kept(layer).slots == 0).any(-1).all())
        kept_answers = answers[new.kept(layer).slots].sum(-1)
        assert int(kept_answers.max()) <= 8


def test_answers_are_found_where_they_stand(vlm, shots) -> None:
    whole = memory.read(*vlm, shots, chunk=4)
    answers = [[t for t in row.tolist() if t >= 0] for row in Words(*vlm).questions(shots).answers]
    slots = answer_slots(whole, 0, [Words(*vlm).questions(shots)])
    assert whole.tokens[0][slots].tolist() == [t for answer in answers for t in answer]
    special = always_kept(vlm[1], whole, 0, 2, True)
    assert special[:2].all()
    assert not (special & whole.images[0])[2:].any()


def test_memory_takes_part_in_the_softmax_only_when_told(vlm, shots) -> None:
    model, processor = vlm
    whole = memory.read(model, processor, shots, chunk=4)
    nothing = torch.zeros(whole.length, dtype=torch.bool)
    batch = Words(model, processor).questions(shots[4:])
    since = whole.length // 2
    with_it, without = (
        Trials(EMLoC(memory_in_softmax=own), model, whole, [batch], Limits(nothing, nothing, since)).scores
        for own in (True, False)
    )
    assert all((without[i][:, since:] >= with_it[i][:, since:] - 1e-5).all() for i in with_it)
    assert all(without[i][:, :since].abs().max() == 0 for i in with_it)


def test_padding_observes_only_as_published(vlm) -> None:
    """Answers of unequal length: the published rows hold padding, ours are what each demonstration gives alone."""
    model, processor = vlm
    words = Words(model, processor)
    shots = [
        steer.Example("?", "red", zoo.examples("colour", "demo", 1)[0].images),
        steer.Example("?", "dark red left", zoo.examples("colour", "demo", 2)[1].images),
    ]
    whole = memory.read(model, processor, shots, chunk=2)
    nothing = torch.zeros(whole.length, dtype=torch.bool)
    mend, old = (
        Trials(EMLoC(padding_observes=p), model, whole, [words.questions(shots)], Limits(nothing, nothing, 0)).scores
        for p in (False, True)
    )
    alone = [
        Trials(EMLoC(), model, whole, [words.questions([shot])], Limits(nothing, nothing, 0)).scores for shot in shots
    ]
    for layer in mend:
        torch.testing.assert_close(mend[layer], alone[0][layer] + alone[1][layer], rtol=1e-4, atol=1e-5)
        assert (old[layer] - mend[layer]).abs().max() > 1e-3


def test_questions_that_are_asked_apart_give_what_they_give_together(vlm, shots) -> None:
    model, processor = vlm
    words = Words(model, processor)
    whole = memory.read(model, processor, shots, chunk=8)
    nothing = torch.zeros(whole.length, dtype=torch.bool)
    one, two = (
        Trials(EMLoC(), model, whole, asked, Limits(nothing, nothing, 0))
        for asked in ([words.questions(shots)], [words.questions(shots[:3]), words.questions(shots[3:])])
    )
    for layer in one.scores:
        torch.testing.assert_close(one.scores[layer], two.scores[layer], rtol=1e-4, atol=1e-5)
    keep = torch.zeros(1, 2, whole.length, dtype=torch.bool)
    keep[..., 0] = True
    assert one.divergence(whole.keep({1: keep}), 1) == pytest.approx(two.divergence(whole.keep({1: keep}), 1), rel=1e-3)


def test_demonstrations_of_several_pictures_and_of_none_go_into_one_memory(vlm) -> None:
    """Frames of a video are pictures in a row; a demonstration in words alone may stand between them."""
    model, processor = vlm
    pictures = [one.images[0] for one in zoo.examples("colour", "demo", 6)]
    shots = [
        steer.Example("?", "red", tuple(pictures[:3])),
        steer.Example("what colour is it?", "blue"),
        steer.Example("?", "green", tuple(pictures[3:5])),
    ]
    made = EMLoC(max_divergence=0.02).build(model, processor, shots, chunk=2, progress=False)
    assert int(made.images.sum()) == 5 * 9
    assert made.info["certificate"]["calibration"]["tokens"] == 3
    assert made.ask(model, processor, [steer.Example("?", "", tuple(pictures[4:6]))])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_5"])
def test_it_runs_on_every_family_that_keeps_a_cache(name) -> None:
    model, processor, shots = seeing(name)
    made = EMLoC(max_divergence=0.05).build(model, processor, shots[:3], chunk=2, probes=shots[3:4], progress=False)
    assert len(made.ask(model, processor, shots[3:5], max_new_tokens=2)) == 2
    assert 0 <= made.info["certificate"]["held_out"]["mean"] <= math.log(2)


@settings(max_examples=60)
@given(least=st.integers(1, 20), more=st.integers(0, 200), enough=st.integers(1, 300))
def test_bisection_finds_the_smallest_number_of_a_monotone_bound(least, more, enough) -> None:
    most = least + more
    tried: list[int] = []

    def attempt(number: int) -> Any:
        tried.append(number)
        return (0.0 if number >= enough else 1.0), {0: torch.tensor(number)}

    found = _bisect(least, most, 0.5, attempt)
    assert all(least <= number < most for number in tried)
    step = max(1, most // 32)
    if enough <= least and least < most:
        assert int(found[1][0]) == least
    elif found is not None:
        assert enough <= int(found[1][0]) < enough + step + 1
    else:
        assert enough > most - step - 1 or least == most


def test_it_is_built_and_not_attached(vlm, shots) -> None:
    with pytest.raises(steer.SteerError, match="build"):
        steer.attach(vlm[0], EMLoC())
    with pytest.raises(steer.SteerError, match="kernel_size"):
        EMLoC(kernel_size=2)
    with pytest.raises(steer.SteerError, match="max_divergence"):
        EMLoC(max_divergence=0.0)
    with pytest.raises(steer.SteerError, match="budget"):
        EMLoC(budget=1.5)
    with pytest.raises(steer.SteerError, match="at least 1"):
        EMLoC().build(*vlm, [])


def test_the_chooser_keeps_the_memory_and_exactly_so_many_new_tokens(vlm, shots) -> None:
    model, processor = vlm
    before = EMLoC(budget=0.25).build(model, processor, shots[:4], chunk=4, progress=False, certify=False)
    whole = before.read(model, Words(model, processor).context(shots, 4)[1])
    answers = answer_slots(whole, before.length, [])
    method = EMLoC(sinks=0, special=False)
    trials = Trials(method, model, whole, [Words(*vlm).questions(shots[4:])], Limits(answers, answers, before.length))
    choose = _Chooser(method, trials, Limits(answers, answers, before.length))
    for layer in whole.places:
        keep = choose(layer, 5)
        assert keep[0, :, :12].all()
        assert (keep[0, :, 12:].sum(-1) == 5).all()
        best = trials.scores[layer][:, 12:].topk(5, dim=-1).indices.sort(-1).values
        assert torch.equal(keep[0, :, 12:].nonzero()[:, 1].view(2, 5), best)


def test_one_row_predicts_each_token_of_an_answer(vlm, shots) -> None:
    """Every answer is one word, and a word is one token."""
    model, processor = vlm
    whole = memory.read(model, processor, shots, chunk=8)
    batch = Words(model, processor).questions(shots)
    _, predicts = answer_inputs(model, whole, batch)
    assert int(predicts.sum()) == answer_logits(model, whole, batch).shape[0] == len(shots)


def test_an_answer_that_stands_in_its_question_too_is_found_behind_it(vlm) -> None:
    shots = [steer.Example("is it red?", "red"), steer.Example("red left", "left"), steer.Example("left", "red")]
    whole = memory.read(*vlm, shots, chunk=3)
    slots = answer_slots(whole, 0, [Words(*vlm).questions(shots)])
    words = vlm[1].tokenizer.convert_ids_to_tokens(whole.tokens[0].tolist())
    ends = [i for i, word in enumerate(words) if "end" in word]
    assert slots.nonzero()[:, 0].tolist() == [end - 1 for end in ends]


def test_a_bound_that_is_not_reached_is_told(vlm, monkeypatch) -> None:
    import steer_memory.emloc as own

    monkeypatch.setattr(own, "ATTEMPTS", 1)
    shots = zoo.examples("colour", "demo", 16)
    with pytest.warns(UserWarning, match="certificate"):
        EMLoC(max_divergence=0.005, special=True, end_to_end=True).build(*vlm, shots, chunk=4, progress=False)


def test_words_that_cannot_be_read_in_parts_are_refused(vlm, shots) -> None:
    with pytest.raises(steer.SteerError, match="got 0 in 4s"):
        Words(*vlm).context([])
    with pytest.raises(steer.SteerError, match="got 8 in 0s"):
        Words(*vlm).context(shots, 0)
    counting = copy.copy(vlm[1])
    counting.chat_template = "{{ messages | length }} turns: " + vlm[1].chat_template
    with pytest.raises(steer.SteerError, match="another way when more follow.*give a plain one"):
        Words(vlm[0], counting).context(shots, 4)
