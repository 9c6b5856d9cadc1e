"""Directions, similarities and thresholds against closed forms and trying everything."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer import conditions as condition

from .helpers import randn


def test_cast_similarity_is_the_papers():
    h, c = randn(7, 12, seed=1, scale=3.0), randn(12, seed=2)
    projector = torch.outer(c.double(), c.double()) / c.double().dot(c.double())
    for row, got in zip(h, condition.cast(h, c), strict=True):
        projected = torch.tanh(projector @ row.double())
        truth = row.double() @ projected / (row.double().norm() * projected.norm())
        assert float(got) == pytest.approx(float(truth), rel=1e-5)


def test_cast_similarity_has_no_sign_and_cosine_has():
    h, c = randn(5, 12, seed=1), randn(12, seed=2)
    torch.testing.assert_close(condition.cast(h, c), condition.cast(-h, c))
    torch.testing.assert_close(condition.cosine(h, c), -condition.cosine(-h, c))
    small = h * 1e-3
    torch.testing.assert_close(condition.cast(small, c), condition.cosine(h, c).abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["principal", "mean_difference"])
def test_a_planted_direction_is_found_with_its_sign(name):
    planted = torch.nn.functional.normalize(randn(16, seed=3), dim=0)
    common = randn(16, seed=4, scale=5.0)
    act = common + 4 * planted + randn(40, 16, seed=5, scale=0.3)
    rest = common - 4 * planted + randn(30, 16, seed=6, scale=0.3)
    assert float(getattr(condition, name)(act, rest).float() @ planted) > 0.99


scores = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


@given(numbers=scores, seed=st.integers(0, 100))
def test_no_threshold_is_better_than_the_best_cut(numbers, seed):
    x = torch.tensor(numbers, dtype=torch.float32) / 3
    wanted = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) > 0.5
    cut = condition.best_cut(x, lambda chosen: condition.f1(chosen, wanted))
    every = [condition.f1(x > at, wanted) for at in torch.linspace(-2, 2, 200).tolist()]
    assert cut.value == max(every)
    assert condition.f1(x > cut.at, wanted) == cut.value


def test_of_equal_cuts_the_one_in_the_widest_gap():
    cut = condition.best_cut(torch.tensor([0.0, 1.0, 5.0]), lambda chosen: float(chosen[2] and not chosen[0]))
    assert cut.at == pytest.approx(3.0)


def test_f1_by_hand():
    for chosen, wanted in itertools.product(itertools.product([False, True], repeat=3), repeat=2):
        pairs = list(zip(chosen, wanted, strict=True))
        true, false = pairs.count((True, True)), pairs.count((True, False))
        missed = pairs.count((False, True))
        precision, recall = true / max(1, true + false), true / max(1, true + missed)
        truth = 2 * precision * recall / (precision + recall) if true else 0.0
        assert condition.f1(torch.tensor(chosen), torch.tensor(wanted)) == pytest.approx(truth)


def test_a_quarter_of_every_group_is_held_out():
    groups = torch.tensor([0] * 8 + [1] * 2 + [-1] * 12)
    held = condition.held_out(groups, 3)
    assert [int(held[groups == one].sum()) for one in (0, 1, -1)] == [2, 1, 3]
    assert torch.equal(held, condition.held_out(groups, 3))
    assert not torch.equal(held, condition.held_out(groups, 4))


def test_the_place_whose_condition_decides_best_is_found():
    """Of three places the middle one alone tells the sets apart; its condition meets one set and not the other."""
    wanted = torch.tensor([True] * 12 + [False] * 12)
    noise = [randn(24, 16, seed=seed) for seed in range(3)]
    noise[1][wanted] += 8 * torch.nn.functional.normalize(randn(16, seed=9), dim=0)
    for states, aim in ((noise, wanted), ([one.flip(0) for one in noise], ~wanted)):
        place, found = condition.find(states, aim, similarity="cosine", direction="mean_difference")
        assert place == 1
        assert found.cut.value == 1.0
        assert found(states[1]).tolist() == aim.float().unsqueeze(-1).tolist()
    place, found = condition.find(noise, wanted, above=2.0)
    assert not found(noise[1]).any()
