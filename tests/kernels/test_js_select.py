"""`js_select` in torch and in Triton: the best tokens by Python's own sort, and the divergence that dropping costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steer_kernels
from steer_kernels.fused import js_select as fused
from steer_kernels.js_select import divergence, dropped_mass
from tests.kernels.settings import DEVICE, EXAMPLES, poison

WAYS = {"torch": steer_kernels.js_select.reference, "triton": fused.js_select}
LN2 = math.log(2)
BUDGETS = (1e-6, 1e-3, 0.02, 0.2, 0.5, LN2)


def apart(p, kept):
    """The Jensen-Shannon divergence between a row's distribution and what is kept of it, as it is defined, in fp64."""
    p = p.double() / p.double().sum()
    q = torch.where(kept, p, 0.0)
    q = q / q.sum()
    middle = (p + q) / 2
    return float((torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)).nansum() / 2)


def ranked(row, safe):
    """A row's tokens from the first that is kept to the first that goes, by Python's sort."""
    values = [-math.inf if math.isnan(x) else x for x in row.tolist()]
    return sorted(range(len(values)), key=lambda i: (not safe[i], -values[i], i))


@st.composite
def rows(draw, whole=False):
    """Scores in some layout, protected tokens, and the arguments that protect them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = draw(st.sampled_from((1, 2, 7, 33, 64, 130)))
    lead = draw(st.sampled_from(((), (2,), (2, 3), (1, 2, 2))))
    scores = torch.rand(*lead, n, generator=generator) ** 6
    if whole or draw(st.booleans()):
        scores = (scores * 9).round()
    layout = draw(st.sampled_from(("plain", "columns", "turned", "expanded")))
    if layout == "columns":
        scores = torch.stack([scores, -scores], -1).flatten(-2)[..., ::2]
    elif layout == "turned" and lead:
        scores = scores.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "expanded" and lead:
        scores = scores[:1].expand_as(scores)
    given = {"sinks": draw(st.sampled_from((0, 0, 1, 4))), "recent": draw(st.sampled_from((0, 0, 2, 200)))}
    shape = draw(st.sampled_from((None, (n,), (*lead, n), (*[1] * len(lead), n))))
    if shape is not None:
        given["always"] = (torch.rand(shape, generator=generator) > 0.8).to(DEVICE)
    at = torch.arange(n)
    safe = (at < given["sinks"]) | (at >= n - given["recent"])
    safe = safe.expand(scores.shape) if shape is None else safe | given["always"].cpu().expand(scores.shape)
    return scores.to(DEVICE), safe.reshape(-1, n), given


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=2 * EXAMPLES)
@given(problem=rows(), part=st.sampled_from((0, 0.1, 0.5, 1, 2)), bad=st.booleans())
def test_the_best_of_a_number(way, problem, part, bad):
    scores, safe, given = problem
    n = scores.shape[-1]
    count = int(part * n)
    if bad:
        scores = scores.clone()
        scores[..., n // 2], scores[..., n // 3] = math.nan, math.inf
        scores[..., 0], scores[..., n - 1] = -0.0, 0.0
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        got = WAYS[way](scores, count=count, **given)
    assert got.shape == scores.shape
    assert got.dtype == torch.bool
    assert got.is_contiguous()
    for kept, row, mine in zip(got.reshape(-1, n), scores.reshape(-1, n), safe, strict=True):
        want = set(ranked(row, mine)[: max(count, int(mine.sum()))])
        assert set(kept.nonzero()[:, 0].tolist()) == want


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=EXAMPLES)
@given(problem=rows(), budget=st.sampled_from(BUDGETS))
def test_the_fewest_that_hold_a_bound(way, problem, budget):
    scores, safe, given = problem
    n = scores.shape[-1]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        got = WAYS[way](scores, budget, **given)
    for kept, row, mine in zip(got.reshape(-1, n).cpu(), scores.reshape(-1, n).cpu(), safe, strict=True):
        order = ranked(row, mine)
        number = int(kept.sum())
        assert set(kept.nonzero()[:, 0].tolist()) == set(order[:number])
        assert number >= max(1, int(mine.sum()))
        if number == 1 or number == int(mine.sum()):
            continue
        mass = row.double()
        gone = float(mass[~kept].sum() / mass.sum())
        more = gone + float(row[order[number - 1]].double() / mass.sum())
        assert gone <= dropped_mass(budget) * (1 + 1e-6)
        assert more >= dropped_mass(budget) * (1 - 1e-6)
        assert apart(row, kept) <= budget * (1 + 1e-6) + 1e-15
        kept[order[number - 1]] = False
        assert apart(row, kept) >= budget * (1 - 1e-6)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=EXAMPLES)
@given(problem=rows(whole=True), budget=st.sampled_from(BUDGETS))
def test_whole_numbers_are_exact(way, problem, budget):
    scores, safe, given = problem
    n = scores.shape[-1]
    got = WAYS[way](scores, budget, **given)
    for kept, row, mine in zip(got.reshape(-1, n), scores.reshape(-1, n), safe, strict=True):
        order = ranked(row, mine)
        limit = sum(map(int, row.tolist())) * dropped_mass(budget)
        lost = 0
        while len(order) > max(1, int(mine.sum())) and lost + int(row[order[-1]]) <= limit:
            lost += int(row[order.pop()])
        assert set(kept.nonzero()[:, 0].tolist()) == set(order)


def test_the_divergence_depends_on_the_mass_alone():
    generator = torch.Generator().manual_seed(0)
    for n in (2, 5, 100):
        p = torch.rand(n, dtype=torch.float64, generator=generator) ** 4
        for kept in (torch.arange(n) < 1, torch.arange(n) > 0, torch.rand(n, generator=generator) > 0.5):
            if kept.any():
                assert apart(p, kept) == pytest.approx(divergence(float(p[~kept].sum() / p.sum())), rel=1e-9, abs=1e-14)
    steps = [divergence(i / 1000) for i in range(1001)]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, LN2)


@pytest.mark.parametrize("budget", [1e-12, 1e-6, 0.01, 0.3, 0.69])
def test_the_mass_is_the_inverse_of_the_divergence(budget):
    assert divergence(dropped_mass(budget)) == pytest.approx(budget, rel=1e-12)
    assert dropped_mass(LN2) == 1


INF, NAN = math.inf, math.nan
SPECIAL = {
    "no mass": ([0, 0, 0], {}, [1, 0, 0]),
    "no mass, one protected": ([0, 0, 0], {"recent": 1}, [0, 0, 1]),
    "nothing but NaN": ([NAN, NAN], {}, [1, 0]),
    "NaN and negative scores have no mass": ([3, NAN, -5, 97], {"budget": divergence(0.031)}, [0, 0, 0, 1]),
    "and rank last": ([NAN, 0, 0], {}, [0, 1, 0]),
    "an infinite score is kept, not counted": ([INF, 97, 3, 3, INF], {"budget": divergence(0.03)}, [1, 1, 1, 0, 1]),
    "of two alike the later one goes": ([2, 2, 2, 2], {"budget": divergence(0.5)}, [1, 1, 0, 0]),
    "everything may go": ([1, 5, 5], {"budget": LN2}, [0, 1, 0]),
    "protected mass counts": ([90, 5, 5], {"budget": divergence(0.0501), "sinks": 1}, [1, 1, 0]),
    "numbers that overflow in a sum": ([3e38, 3e38, 3e38, 1e36], {"budget": divergence(0.34)}, [1, 1, 0, 0]),
    "denormal ones": ([1e-42, 4e-42], {"budget": divergence(0.3)}, [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_rows(way, name):
    row, given, want = SPECIAL[name]
    got = WAYS[way](torch.tensor(row, dtype=torch.float32, device=DEVICE), **{"budget": 0.1, **given})
    assert got.int().tolist() == want


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("given", [{"budget": 0.05}, {"count": 5000}], ids=["budget", "count"])
def test_rows_that_do_not_fit_into_registers(way, given):
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(2, 20001, generator=generator) ** 4 * 50).round().to(DEVICE)
    always = (torch.rand(20001, generator=generator) > 0.99).to(DEVICE)
    got = WAYS[way](scores, **given, always=always, sinks=3)
    safe = always.clone()
    safe[:3] = True
    for row, kept in zip(scores, got, strict=True):
        order = ranked(row, safe.tolist())
        if "budget" in given:
            limit, lost = float(row.double().sum()) * dropped_mass(given["budget"]), 0.0
            while lost + float(row[order[-1]]) <= limit:
                lost += float(row[order.pop()])
        else:
            order = order[: given["count"]]
        assert kept.nonzero()[:, 0].tolist() == sorted(order)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(way, dtype):
    scores = torch.rand(2, 40, device=DEVICE).to(dtype)
    same = scores.float() if dtype != torch.float64 else scores
    for asked in ({"count": 7}, {"budget": 0.1}):
        assert torch.equal(WAYS[way](scores, **asked), WAYS["torch"](same, **asked))
    if dtype == torch.float64:
        close = 1 + torch.arange(8, dtype=dtype, device=DEVICE) * 1e-12
        assert WAYS[way](close, count=3).nonzero()[:, 0].tolist() == [5, 6, 7]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_nothing_to_choose_from(way, shape):
    empty = torch.empty(shape, device=DEVICE)
    assert WAYS[way](empty, 0.1).shape == shape
    assert WAYS[way](empty, count=2).shape == shape


@pytest.mark.parametrize("given", [(0.1, None), (None, 2)])
def test_the_operator_is_a_good_citizen(given):
    scores, always = torch.rand(2, 9, device=DEVICE), torch.rand(9, device=DEVICE) > 0.5
    torch.library.opcheck(fused.operator, (scores, *given, always, 1, 0))
    torch.library.opcheck(fused.operator, (scores.T, *given, None, 0, 2))


def test_compiled_code_keeps_the_operator_whole():
    scores = torch.rand(2, 9, device=DEVICE, requires_grad=True)
    step = torch.compile(lambda x: fused.js_select(x * 2, count=4) & True, fullgraph=True, backend="aot_eager")
    assert torch.equal(step(scores), fused.js_select(scores, count=4))


def test_the_dispatcher_runs_either():
    scores = torch.rand(2, 9)
    plain = steer_kernels.js_select(scores, count=3)
    with steer_kernels.prefer("triton"):
        assert steer_kernels.best("js_select", "cpu") is fused.js_select
        assert torch.equal(steer_kernels.js_select(scores.to(DEVICE), count=3).cpu(), plain)


WRONG = {
    "neither": ({}, ["budget=None", "count=None"]),
    "both": ({"budget": 0.1, "count": 3}, ["budget=0.1", "count=3"]),
    "a budget of nothing": ({"budget": 0.0}, ["ln 2", "0.0"]),
    "a budget beyond the largest divergence": ({"budget": 0.7}, ["0.693", "0.7"]),
    "a negative count": ({"count": -1}, ["count", "-1"]),
    "negative sinks": ({"count": 1, "sinks": -2}, ["sinks", "-2"]),
    "always of another length": ({"count": 1, "always": torch.ones(4).bool()}, ["[2, 5]", "[4]"]),
    "always as numbers": ({"count": 1, "always": torch.ones(5)}, ["bool", "float32"]),
    "whole numbers": ({"count": 1, "scores": torch.ones(5).int()}, ["floating", "int32"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(way, wrong):
    changed, facts = WRONG[wrong]
    moved = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in changed.items()}
    with pytest.raises(ValueError) as error:
        WAYS[way](**{"scores": torch.rand(2, 5, device=DEVICE), **moved})
    assert all(fact in str(error.value) for fact in facts), str(error.value)
