"""The metrics equal closed forms, plain loops and scikit-learn, in whatever order the questions come."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steer.errors import SteerError
from steer.suites import _weighted, metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")
calibration = pytest.importorskip("sklearn.calibration")

# Few distinct values, so that ties are common.
CHANCES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 0.6, 1.0]))
PAIRS = st.lists(st.tuples(CHANCES, st.booleans()), min_size=1, max_size=60)
OF_PAIRS = {
    "ece": metrics.ece,
    "ece by mass": lambda p, y: metrics.ece(p, y, by="mass"),
    "brier": metrics.brier,
    "nll": metrics.nll,
    "aurc": metrics.aurc,
    "auroc": metrics.auroc,
    "threshold for risk": lambda p, y: metrics.threshold_for_risk(p, y, 0.2),
    "threshold for utility": lambda p, y: metrics.threshold_for_utility(p, y, 3.0),
}


def arrays(pairs):
    return np.array([p for p, _ in pairs]), np.array([y for _, y in pairs])


@pytest.mark.parametrize("name", OF_PAIRS)
@given(pairs=PAIRS, order=st.randoms(use_true_random=False))
def test_order_does_not_matter(name, pairs, order):
    mixed = order.sample(pairs, len(pairs))
    assert OF_PAIRS[name](*arrays(mixed)) == pytest.approx(OF_PAIRS[name](*arrays(pairs)), abs=1e-12, nan_ok=True)


@given(pairs=PAIRS)
def test_scikit_learn_finds_the_same(pairs):
    p, y = arrays(pairs)
    assert metrics.brier(p, y) == pytest.approx(sklearn_metrics.brier_score_loss(y, p, labels=[0, 1], pos_label=1))
    assert metrics.nll(p, y) == pytest.approx(sklearn_metrics.log_loss(y, p, labels=[0, 1]), abs=1e-12)
    if 0 < y.sum() < len(y):
        assert metrics.auroc(p, y) == pytest.approx(sklearn_metrics.roc_auc_score(y, p), abs=1e-12)
    else:
        assert math.isnan(metrics.auroc(p, y))
    found = metrics.reliability(p, y, bins=15)
    right, confidence = calibration.calibration_curve(y, p, n_bins=15, strategy="uniform")
    np.testing.assert_allclose(found.right, right, atol=1e-12)
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-12)
    assert found.count.sum() == len(p)


@pytest.mark.parametrize("bins", [1, 2, 7, 15])
def test_equal_mass_is_the_sorted_answers_cut_into_equal_parts(bins):
    rng = np.random.default_rng(0)
    p = rng.permutation(np.linspace(0.01, 0.99, 15 * 14))
    y = rng.random(len(p)) < 0.3
    order = np.argsort(p)
    parts = list(zip(np.array_split(p[order], bins), np.array_split(y[order], bins), strict=True))
    assert metrics.reliability(p, y, bins=bins, by="mass").count.tolist() == [len(part) for part, _ in parts]
    expected = sum(len(part) / len(p) * abs(right.mean() - part.mean()) for part, right in parts)
    assert metrics.ece(p, y, bins=bins, by="mass") == pytest.approx(expected)


def test_equal_confidences_stay_in_one_bin():
    found = metrics.reliability([0.5] * 9 + [0.9], [True] * 9 + [False], bins=5, by="mass")
    assert (found.count.tolist(), found.right.tolist()) == ([9, 1], [1.0, 0.0])


@pytest.mark.parametrize("by", ["width", "mass"])
def test_the_error_of_a_calibrated_set_goes_to_nought_and_of_another_to_what_it_is_off(by):
    rng = np.random.default_rng(1)
    found = []
    for n in (1_000, 100_000):
        p = rng.random(n)
        y = rng.random(n) < p
        found.append(metrics.ece(p, y, by=by))
    assert found[1] < 0.01
    assert found[0] > 3 * found[1]
    sure = np.full(100_000, 0.9)
    assert metrics.ece(sure, rng.random(100_000) < 0.6, by=by) == pytest.approx(0.3, abs=0.01)


def test_by_hand():
    # Two bins of width one half: (0.2, wrong), (0.5, right) | (0.6, right), (1.0, wrong)
    p, y = [0.2, 0.5, 0.6, 1.0], [False, True, True, False]
    assert metrics.ece(p, y, bins=2) == pytest.approx(0.5 * abs(0.5 - 0.35) + 0.5 * abs(0.5 - 0.8))
    assert metrics.brier(p, y) == pytest.approx((0.04 + 0.25 + 0.16 + 1.0) / 4)
    assert metrics.nll([0.25, 0.5], [True, False]) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert metrics.auroc([1, 2, 2, 3], [False, False, True, True]) == pytest.approx(3.5 / 4)
    curve = metrics.risk_coverage([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.1]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 0.5])
    # The tied two stand in either order: risks 0, (0 + 1/2) / 2, 1/3, 1/2.
    assert metrics.aurc([0.9, 0.8, 0.8, 0.1], [True, True, False, False]) == pytest.approx((0.25 + 1 / 3 + 0.5) / 4)


@given(n=st.integers(1, 40), wrong=st.integers(0, 40))
def test_the_area_of_an_oracle_and_of_one_that_knows_nothing(n, wrong):
    wrong = min(wrong, n)
    right = np.arange(n) >= wrong
    oracle = sum(j / (n - wrong + j) for j in range(1, wrong + 1)) / n
    assert metrics.aurc(right.astype(float), right) == pytest.approx(oracle)
    assert metrics.aurc(np.full(n, 0.7), right) == pytest.approx(wrong / n)


@given(pairs=PAIRS, risk=st.floats(0, 1), cost=st.floats(0, 20))
def test_a_fitted_threshold_is_the_best_of_all(pairs, risk, cost):
    p, y = arrays(pairs)
    tries = [metrics.abstain(p, y, threshold, cost) for threshold in (*sorted(set(p)), math.inf)]
    best = metrics.abstain(p, y, metrics.threshold_for_utility(p, y, cost), cost)
    assert best.utility == pytest.approx(max(one.utility for one in tries), abs=1e-9)
    chosen = metrics.abstain(p, y, metrics.threshold_for_risk(p, y, risk), cost)
    keeping = [one.coverage for one in tries if not one.coverage or one.risk <= risk]
    assert chosen.coverage == max(keeping)


def test_what_is_not_answered_costs_nothing():
    found = metrics.abstain([0.9, 0.8, 0.3, 0.2], [True, False, False, True], 0.5, 3.0)
    assert (found.coverage, found.risk, found.utility, found.n) == (0.5, 0.5, (1 - 3) / 4, 4)
    nothing = metrics.abstain([0.9], [True], math.inf)
    assert (nothing.coverage, nothing.utility) == (0.0, 0.0)
    assert math.isnan(nothing.risk)


def mean(columns):
    return float(columns["x"].mean())


def test_the_bootstrap_of_a_mean_is_as_wide_as_the_normal_interval():
    x = np.random.default_rng(3).normal(2.0, 1.5, 400)
    found = metrics.bootstrap(mean, {"x": x}, resamples=4000)
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert found.value == pytest.approx(x.mean())
    assert (found.low, found.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)
    assert metrics.bootstrap(mean, {"x": x}, resamples=50) == metrics.bootstrap(mean, {"x": x}, resamples=50)
    assert metrics.bootstrap(mean, {"x": x}, resamples=50, seed=1) != metrics.bootstrap(mean, {"x": x}, resamples=50)


def test_copies_of_a_question_do_not_make_an_interval_narrower_where_they_are_one_cluster():
    x = np.random.default_rng(4).normal(size=100)
    once = metrics.bootstrap(mean, {"x": x}, seed=5)
    copied, clusters = np.tile(x, 9), np.tile(np.arange(100), 9).tolist()
    together = metrics.bootstrap(mean, {"x": copied}, clusters=clusters, seed=5)
    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    apart = metrics.bootstrap(mean, {"x": copied}, seed=5)
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_a_paired_difference_knows_that_the_questions_are_the_same():
    rng = np.random.default_rng(6)
    hard = rng.normal(0, 5, 200)
    first, second = hard + 0.3 + rng.normal(0, 0.2, 200), hard
    found = metrics.paired_bootstrap(mean, {"x": first}, {"x": second})
    assert found.value == pytest.approx((first - second).mean())
    assert 0.2 < found.low < found.value < found.high < 0.4
    same = metrics.paired_bootstrap(mean, {"x": first}, {"x": first})
    assert (same.value, same.low, same.high) == (0, 0, 0)


@given(pairs=PAIRS, seed=st.integers(0, 1000))
def test_many_resamples_at_once_are_each_what_its_questions_give(pairs, seed):
    p, y = arrays(pairs)
    w = np.random.default_rng(seed).integers(0, 4, (3, len(p))).astype(float)
    w[:, 0] += 1  # none is empty
    found = {
        "mean": _weighted.mean(p, w),
        "share": _weighted.share(y & (p > 0.5), y, w),
        "ece": _weighted.ece(p, y, w),
        "auroc": _weighted.auroc(p, y, w),
        "aurc": _weighted.aurc(p, y, w),
    }
    for i, times in enumerate(w.astype(int)):
        # By hand from single questions, without the functions that the public ones are made of.
        q, z = np.repeat(p, times), np.repeat(y, times)
        wins = [(a > b) + (a == b) / 2 for a in q[z] for b in q[~z]]
        risks = []
        for k in range(1, len(q) + 1):
            edge = np.sort(q)[::-1][k - 1]
            surer, equal = ~z[q > edge], ~z[q == edge]
            risks.append((surer.sum() + equal.mean() * (k - len(surer))) / k)
        bins = [(q > j / 15) & (q <= (j + 1) / 15) | (q == 0) & (j == 0) for j in range(15)]
        expected = {
            "mean": q.mean(),
            "share": (z & (q > 0.5)).sum() / z.sum() if z.any() else math.nan,
            "ece": sum(abs(z[one].sum() - q[one].sum()) for one in bins) / len(q),
            "auroc": np.mean(wins) if wins else math.nan,
            "aurc": np.mean(risks),
        }
        assert {name: one[i] for name, one in found.items()} == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_what_cannot_be_said_is_nan_and_null_in_json():
    found = metrics.bootstrap(lambda columns: float("nan"), {"x": [1.0, 2.0]}, resamples=10)
    assert found.to_dict() == {"value": None, "low": None, "high": None}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_mcnemar_is_the_sign_test(pairs):
    one, other = np.array(pairs).T
    found = metrics.mcnemar(one, other)
    assert (found.gained, found.lost) == (pairs.count((True, False)), pairs.count((False, True)))
    differing = found.gained + found.lost
    expected = stats.binomtest(found.gained, differing, 0.5).pvalue if differing else 1.0
    assert found.p == pytest.approx(expected)
    assert metrics.mcnemar(other, one).p == found.p


@pytest.mark.parametrize(
    "call, facts",
    [
        (lambda: metrics.ece([0.5, 1.5], [True, False]), ("confidence", "0 to 1", "1.5")),
        (lambda: metrics.brier([math.nan], [True]), ("0 to 1", "nan")),
        (lambda: metrics.ece([], []), ("one or more", "(0,)")),
        (lambda: metrics.ece([0.5], [True, False]), ("1 probabilities", "2 outcomes")),
        (lambda: metrics.ece([0.5], [2]), ("true or false", "2")),
        (lambda: metrics.ece([0.5], [True], by="masses"), ("masses", "did you mean 'mass'?")),
        (lambda: metrics.ece([0.5], [True], bins=0), ("at least 1", "0")),
        (lambda: metrics.auroc([1.0], [True, False]), ("(1,)", "(2,)")),
        (lambda: metrics.auroc([math.nan, 1.0], [True, False]), ("nan",)),
        (lambda: metrics.threshold_for_risk([0.5], [True], 2.0), ("0 to 1", "2.0")),
        (lambda: metrics.aurc([0.5, 0.6], [True]), ("2 confidences", "1 outcomes")),
        (lambda: metrics.threshold_for_utility([0.5], [True], -1.0), ("wrong_cost", "-1.0")),
        (lambda: metrics.mcnemar([True], [True, False]), ("1 questions against 2",)),
        (lambda: metrics.bootstrap(mean, {}), ("columns", "{}")),
        (lambda: metrics.bootstrap(mean, {"x": [1.0]}, resamples=0), ("resamples", "at least 1", "0")),
        (lambda: metrics.bootstrap(mean, {"x": [1.0, 2.0]}, clusters=["a"]), ("1 clusters", "2 questions")),
        (lambda: metrics.paired_bootstrap(mean, {"x": [1.0]}, {"x": [1.0, 2.0]}), ("1 questions against 2",)),
    ],
)
def test_errors_say_what_is_wrong(call, facts):
    with pytest.raises(SteerError) as raised:
        call()
    assert all(fact in str(raised.value) for fact in facts), str(raised.value)
