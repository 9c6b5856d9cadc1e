"""ITI's probes against their own conditions of optimality, and its heads, directions and shifts against plain hooks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import steer
from steer.errors import InterventionError, UnknownNameError
from steer.prompts import Prompt
from steer_attention import _probes
from tests.engine.helpers import randn
from tests.vectors.gating import inputs_of
from tests.vectors.subjects import SUBJECTS, passing, subject

from .laws import check_decoding, check_half, check_neutral, check_saved, hooked, steered_alone, width_of

GRID = {"alpha": 8.0, "count": 3}


@cache
def lists(name: str) -> tuple[list[steer.Example], list[steer.Example]]:
    """Every example, and the same with the answer of the next one."""
    given = subject(name).examples
    answers = [one.answer for one in given]
    return list(given), [replace(one, answer=answers[i - 3]) for i, one in enumerate(given)]


@cache
def fitted(name: str, **config) -> steer.Method:
    one, (right, wrong) = subject(name), lists(name)
    method = steer.create("iti", **{**GRID, **config})
    return method.fit(one.model, one.processor, right, against=wrong, batch_size=3, progress=False)


def heads_by_hand(one, layer: int, examples, answered: bool = True) -> torch.Tensor:
    """What every head says at each prompt's last token, read alone by a plain hook: fp64 (N, H, d_v)."""
    module = one.layers[layer].self_attn.o_proj
    found = []
    for example in examples:
        inputs = one.by_hand(Prompt(example, answered=answered))
        found.append(passing(module, one.model, inputs, before=True)[0, -1].double())
    return torch.stack(found).unflatten(-1, (-1, width_of(one)))


@pytest.mark.parametrize("name", SUBJECTS)
def test_directions_and_spreads_are_those_of_prompts_read_alone(name):
    one, method, (right, wrong) = subject(name), fitted(name), lists(name)
    places = method.tensors["heads"].long().tolist()
    seen: dict[int, int] = {}
    for place, (layer, head) in enumerate(places):
        yes, no = (heads_by_hand(one, layer, some)[:, head] for some in (right, wrong))
        theta = yes.mean(0) - no.mean(0)
        theta = theta / theta.norm()
        along = torch.cat([yes, no]) @ theta
        sigma = ((along - along.mean()) ** 2).mean().sqrt()
        got = method.tensors[f"directions.{layer}"][seen.setdefault(layer, 0)]
        seen[layer] += 1
        torch.testing.assert_close(got.double(), theta, rtol=1e-3, atol=1e-3)
        assert float(method.tensors["sigma"][place]) == pytest.approx(float(sigma), rel=1e-3)
    assert all(value.dtype == torch.float32 for value in method.tensors.values())


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_shift_enters_the_output_projection_where_answers_are_written(name):
    one, method, width = subject(name), fitted(name), width_of(subject(name))
    inputs, length = inputs_of(one, 1), inputs_of(one, 1)["input_ids"].shape[1]
    places = method.tensors["heads"].long().tolist()
    count = {layer: 0 for layer, _ in places}
    shifts: dict[int, list[tuple[int, torch.Tensor]]] = {layer: [] for layer in count}
    for place, (layer, head) in enumerate(places):
        theta = method.tensors[f"directions.{layer}"][count[layer]]
        count[layer] += 1
        shifts[layer].append((head, 8.0 * method.tensors["sigma"][place] * theta))

    def change(layer):
        def add(o):
            for head, shift in shifts[layer]:
                o[length - 1 :, head * width : (head + 1) * width] += shift.to(o.dtype)

        return add

    truth = hooked(one, inputs, {layer: change(layer) for layer in shifts})
    got = steered_alone(one, method, 1)
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))
    plain = hooked(one, inputs, {})
    torch.testing.assert_close(got[:-1], plain[:-1], rtol=1e-4, atol=1e-4 * float(truth.abs().max()))
    assert (got[-1] - plain[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_most_accurate_heads_are_kept_best_first(name):
    method = fitted(name)
    accuracy = method.tensors["accuracy"]
    kept = [float(accuracy[int(layer), int(head)]) for layer, head in method.tensors["heads"]]
    assert kept == sorted(kept, reverse=True)
    assert kept == accuracy.flatten().sort(descending=True).values[:3].tolist()


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_holds_in_every_way_of_decoding(name):
    check_decoding(subject(name), fitted(name, alpha=40.0, count=6))


def test_half_precision_saving_and_neutrality(tmp_path):
    one = subject("llama")
    check_half(fitted("llama", alpha=40.0, count=12), one)
    check_saved(one, fitted("llama"), tmp_path)
    check_neutral(one, fitted("llama", alpha=0.0))


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_seed_decides_everything_and_the_batch_size_nothing(name):
    one, (right, _) = subject(name), lists(name)

    def fit(**options):
        return steer.create("iti", **GRID).fit(one.model, one.processor, right, seed=7, progress=False, **options)

    first, again, cut = fit(), fit(), fit(batch_size=5)
    for key, value in first.tensors.items():
        assert torch.equal(value, again.tensors[key])
        torch.testing.assert_close(value, cut.tensors[key], rtol=1e-3, atol=1e-4)
    assert first.provenance == again.provenance


def test_without_another_list_answers_are_dealt_out():
    one, (right, _) = subject("llama"), lists("llama")
    answers = {e.answer for e in right}
    dealt = steer.create("iti", **GRID)
    dealt.fit(one.model, one.processor, right, seed=3, progress=False)
    from steer_attention._two_lists import _dealt

    wrong = _dealt(right, 3, "iti")
    assert all(a.answer != b.answer and b.answer in answers for a, b in zip(right, wrong, strict=True))
    assert [a.question for a in right] == [b.question for b in wrong]
    given = steer.create("iti", **GRID)
    given.fit(one.model, one.processor, right, against=wrong, seed=3, progress=False)
    assert all(torch.equal(given.tensors[key], dealt.tensors[key]) for key in given.tensors)


def test_what_shows_in_the_prompt_is_read_there():
    one, (right, _) = subject("llama"), lists("llama")
    bare = [steer.Example(e.question) for e in right[:4]]
    other = [steer.Example(e.question) for e in right[4:]]
    method = steer.create("iti", read="prompt", heads=((1, 2),), alpha=1.0)
    method.fit(one.model, one.processor, bare, against=other, progress=False)
    yes, no = (heads_by_hand(one, 1, some, answered=False)[:, 2] for some in (bare, other))
    truth = torch.nn.functional.normalize(yes.mean(0) - no.mean(0), dim=0)
    torch.testing.assert_close(method.tensors["directions.1"][0].double(), truth, rtol=1e-3, atol=1e-3)
    with pytest.raises(steer.SteerError, match="against"):
        method.fit(one.model, one.processor, bare)


def test_alpha_is_chosen_on_what_was_held_out_with_its_wrong_answers():
    one, (right, wrong) = subject("llama"), lists("llama")
    method = steer.create("iti", alpha=None, count=3)
    method.fit(one.model, one.processor, right, against=wrong, seed=1, progress=False)
    pool, held = steer.fitting.hold_out(right, seed=1)
    assert float(method.tensors["alpha"]) in (1.0, 3.0, 5.0, 10.0, 15.0)
    assert method.tensors["tried"].shape == (5,)
    kept = [w for w in wrong if w.question not in {h.question for h in held}]
    same = steer.create("iti", alpha=1.0, count=3).fit(
        one.model, one.processor, pool, against=kept, seed=1, progress=False
    )
    assert all(torch.equal(same.tensors[key], method.tensors[key]) for key in same.tensors)
    assert method.provenance["data"] == same.provenance["data"]


def test_probes_are_where_the_gradient_vanishes():
    x, positive = randn(40, 3, 7, seed=1).double(), torch.arange(40) % 3 == 0
    x[positive, 1] += 1.0
    w = _probes.logistic(x, positive, penalty=0.7).requires_grad_()
    sign = torch.where(positive, 1.0, -1.0).double().unsqueeze(-1)
    score = sign * (torch.einsum("nhd,hd->nh", x, w[:, :-1]) + w[:, -1])
    loss = -torch.nn.functional.logsigmoid(score).sum() + 0.35 * w[:, :-1].square().sum()
    loss.backward()
    assert float(w.grad.abs().max()) < 1e-7


def test_probes_of_classes_that_a_line_separates_stay_finite():
    x = torch.cat([randn(10, 2, 3, seed=1) + 50, randn(10, 2, 3, seed=2) - 50]).double()
    positive = torch.arange(20) < 10
    w = _probes.logistic(x, positive)
    assert w.isfinite().all()
    assert ((torch.einsum("nhd,hd->nh", x, w[:, :-1]) + w[:, -1] > 0) == positive.unsqueeze(-1)).all()


def test_a_planted_head_is_found_and_noise_is_no_better_than_chance():
    states, positive = randn(200, 6, 8, seed=3), torch.arange(200) % 2 == 0
    states[positive, 4, :2] += 1.5
    accuracy, sure = _probes.held_out(states, positive, _probes.folds(range(200), positive, 5, 0))
    assert int(accuracy.argmax()) == 4 == int(sure.argmax())
    assert float(accuracy[4]) > 0.8
    assert (accuracy[[0, 1, 2, 3, 5]] - 0.5).abs().max() < 0.15


def test_held_out_accuracy_is_counted_row_by_row():
    """Against probes fitted one fold and one head at a time by torch's LBFGS."""
    states, positive = randn(24, 2, 3, seed=5), torch.arange(24) % 2 == 0
    states[positive] += 0.7
    fold = torch.arange(24) // 2 % 3
    truth = torch.zeros(2)
    for head in range(2):
        for out in range(3):
            train, test = states[fold != out, head].double(), states[fold == out, head].double()
            mean, std = train.mean(0), train.std(0, correction=0)
            train, test = (train - mean) / std, (test - mean) / std
            y = positive[fold != out].double()
            w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
            optimiser = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

            def closure(train=train, y=y, w=w, optimiser=optimiser):
                optimiser.zero_grad()
                score = train @ w[:3] + w[3]
                fit = torch.nn.functional.binary_cross_entropy_with_logits(score, y, reduction="sum")
                loss = fit + w[:3].square().sum() / 2
                loss.backward()
                return loss

            optimiser.step(closure)
            truth[head] += ((test @ w[:3] + w[3] > 0) == positive[fold == out]).sum()
    accuracy, _ = _probes.held_out(states, positive, fold)
    torch.testing.assert_close(accuracy.float(), truth / 24)


def test_a_question_is_in_one_fold_and_every_fold_is_trained_on_both_kinds():
    groups = [f"q{i % 9}" for i in range(18)] + [f"yes{i}" for i in range(6)] + [f"no{i}" for i in range(6)]
    positive = torch.tensor([i < 9 for i in range(18)] + [True] * 6 + [False] * 6)
    for seed in range(5):
        fold = _probes.folds(groups, positive, 4, seed)
        where = {g: {int(f) for f, h in zip(fold, groups, strict=True) if h == g} for g in groups}
        assert all(len(found) == 1 for found in where.values())
        assert set(fold.tolist()) == {0, 1, 2, 3}
        for out in range(4):
            assert 0 < int(positive[fold != out].sum()) < int((fold != out).sum())
    assert not torch.equal(_probes.folds(groups, positive, 4, 0), _probes.folds(groups, positive, 4, 1))
    assert _probes.folds(["a", "b", "a"], torch.tensor([True, False, False]), 5, 0).unique().tolist() == [0, 1]


def test_the_probes_direction_is_that_of_the_raw_states():
    """States stretched along one axis: its weight shrinks by as much, where the difference of means grows."""
    states, positive = randn(60, 1, 4, seed=7), torch.arange(60) % 2 == 0
    states[positive, 0, 0] += 2.0
    narrow = _probes.probe_weight(states, positive)[0]
    wide = _probes.probe_weight(states * torch.tensor([10.0, 1, 1, 1]), positive)[0]
    torch.testing.assert_close(wide[1:] / wide[0] / 10, narrow[1:] / narrow[0], rtol=1e-6, atol=1e-9)


BAD = [
    ({"count": 0}, InterventionError, "count=0"),
    ({"folds": 1}, InterventionError, "folds=1"),
    ({"direction": "mass"}, UnknownNameError, "mass_mean"),
    ({"read": "anser"}, UnknownNameError, "'answer'"),
    ({"heads": ()}, InterventionError, "no heads"),
]


@pytest.mark.parametrize(("config", "kind", "says"), BAD)
def test_what_makes_no_sense_is_refused_at_once(config, kind, says):
    with pytest.raises(kind, match=says):
        steer.create("iti", **config)


def test_what_is_missing_is_named():
    one, (right, wrong) = subject("llama"), lists("llama")
    with pytest.raises(steer.SteerError, match="must be fitted first"):
        steer.attach(one.model, steer.create("iti"))
    with pytest.raises(steer.SteerError, match=r"against.*at least 2.*got 1"):
        steer.create("iti").fit(one.model, one.processor, right, against=wrong[:1])
    with pytest.raises(steer.SteerError, match=r"at least 4.*got 2"):
        steer.create("iti", alpha=None).fit(one.model, one.processor, right[:2])
    with pytest.raises(steer.SteerError, match="every example's answer is 'w9'"):
        steer.create("iti").fit(one.model, one.processor, [replace(e, answer="w9") for e in right])
    with pytest.raises(steer.SteerError, match="has no answer"):
        steer.create("iti").fit(one.model, one.processor, right, against=[steer.Example("w7")] * 2)
    with pytest.raises(steer.SteerError, match="processor"):
        steer.create("iti").fit(one.model, None, right)
