"""`compact` in torch and in Triton: dropping is indexing, bit for bit; merging is a weighted mean, in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steer_kernels
from steer.memory import pick
from steer_kernels.fused import compact as fused
from tests.kernels.settings import DEVICE, EXAMPLES, check, poison

WAYS = {"torch": steer_kernels.compact.reference, "triton": fused.compact}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.float64, torch.int8, torch.float8_e4m3fn, torch.bool)


def bits(x):
    return x.contiguous().view(torch.uint8)


def laid_out(x, layout):
    """The same numbers with other strides."""
    if layout == "turned":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        wide = torch.cat([x[..., :1], x, x[..., :2]], -1)
        return wide[..., 1:-2]
    if layout == "columns":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


@st.composite
def caches(draw, dtypes=DTYPES):
    """Keys and values (B, H, S, d) and what is to be kept of them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length = draw(st.sampled_from((1, 5, 17, 70)))
    widths = draw(st.sampled_from(((4, 4), (8, 5), (1, 3), (48, 32), (192, 128))))
    dtype = draw(st.sampled_from(dtypes))
    made = []
    for width in widths:
        x = torch.randn(batch, heads, length, width, generator=generator) * 3
        x = laid_out(x.to(dtype).to(DEVICE), draw(st.sampled_from(("plain", "turned", "sliced", "columns"))))
        made.append(x[:, :1].expand(batch, heads, length, width) if draw(st.integers(0, 4)) == 0 else x)
    count = draw(st.integers(0, length))
    shape = draw(st.sampled_from(((), (batch, heads), (1, heads), (batch, 1))))
    chosen = torch.rand(*shape, length, generator=generator).argsort(-1)[..., :count].sort(-1).values
    return *made, chosen.to(DEVICE), generator


def picked(x, index):
    """Row by row, with Python's own loops."""
    batch, heads = x.shape[:2]
    index = index.expand(batch, heads, index.shape[-1])
    return torch.stack([torch.stack([x[b, h][index[b, h]] for h in range(heads)]) for b in range(batch)])


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=2 * EXAMPLES)
@given(problem=caches(), ragged=st.booleans())
def test_dropping_is_indexing(way, problem, ragged):
    keys, values, index, generator = problem
    valid = None
    if ragged:
        valid = (torch.rand(*keys.shape[:2], index.shape[-1], generator=generator) > 0.4).to(DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        if keys.dtype != torch.float8_e4m3fn:
            poison(patch)
        got = WAYS[way](keys, values, index, valid=valid)
    for mine, x in zip(got, (keys, values), strict=True):
        want = picked(bits(x).view(*x.shape[:3], -1), index)
        want = want if valid is None else want[valid]
        assert mine.dtype == x.dtype
        assert mine.is_contiguous()
        assert mine.shape == (*want.shape[:-1], x.shape[-1])
        assert torch.equal(bits(mine).view(want.shape), want)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=EXAMPLES)
@given(problem=caches(FLOATS), weighed=st.booleans())
def test_merging_is_a_weighted_mean(way, problem, weighed):
    keys, values, index, generator = problem
    lead, length, count = keys.shape[:2], keys.shape[2], index.shape[-1]
    into = torch.randint(-1, max(count, 1), (*lead, length), generator=generator).to(DEVICE)
    into = into if count else torch.full_like(into, -1)
    index = index.expand(*lead, count)
    into.scatter_(2, index, torch.arange(count, device=DEVICE).expand(*lead, count))
    weight = torch.rand(*lead, length, generator=generator).to(DEVICE) if weighed else None
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        got = WAYS[way](keys, values, index, into=into, weight=weight)
    # (B, H, n, S): how much of each token goes into each column
    share = (into[:, :, None] == torch.arange(count, device=DEVICE)[:, None]).double()
    share = share if weight is None else share * weight.double()[:, :, None]
    for mine, x in zip(got, (keys, values), strict=True):
        assert mine.is_contiguous()
        assert mine.dtype == x.dtype
        check(mine, share @ x.double() / share.sum(-1, keepdim=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_column_without_weight_stays_as_it_is(way):
    keys = torch.randn(1, 1, 5, 8, device=DEVICE)
    index, into = torch.tensor([1, 3], device=DEVICE), torch.tensor([0, 0, 0, 1, 0], device=DEVICE)[None, None]
    weight = torch.tensor([0.0, 0, 0, 2, 0], device=DEVICE)[None, None]
    got, _ = WAYS[way](keys, keys, index, into=into, weight=weight)
    assert torch.equal(got, keys[:, :, [1, 3]])
    got, _ = WAYS[way](keys, keys, index, into=into, weight=weight.new_tensor([0, float("nan"), 0, 1, 0])[None, None])
    assert torch.equal(got[:, :, 0], keys[:, :, 1])


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_token_spoils_only_its_own_column(way):
    keys = torch.randn(1, 2, 6, 8, device=DEVICE)
    keys[0, 1, 4, 2], keys[0, 0, 0, 0] = float("nan"), float("inf")
    index = torch.tensor([1, 4], device=DEVICE)
    into = torch.tensor([-1, 0, 0, 0, 1, 1], device=DEVICE)[None, None]
    got, _ = WAYS[way](keys, keys, index, into=into)
    assert got.isnan().nonzero().tolist() == [[0, 1, 1, 2]]
    assert got[~got.isnan()].isfinite().all()


@pytest.mark.parametrize("way", WAYS)
def test_merging_everything_into_one_column_and_many_into_each(way):
    keys = torch.randn(1, 1, 1000, 3, device=DEVICE)
    one = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    got, _ = WAYS[way](keys, keys, one, into=torch.zeros(1, 1, 1000, dtype=torch.int64, device=DEVICE))
    check(got, keys.double().mean(2, keepdim=True), 1e-5)
    again, _ = WAYS[way](keys, keys, one, into=torch.zeros(1, 1, 1000, dtype=torch.int64, device=DEVICE))
    assert torch.equal(got, again)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_in_fp64(way, ragged):
    torch.manual_seed(0)
    keys, values = (torch.randn(2, 1, 4, w, dtype=torch.float64, device=DEVICE) for w in (2, 1))
    index = torch.tensor([0, 2, 3], device=DEVICE).expand(2, 1, 3)
    valid = torch.tensor([[[1, 1, 0]], [[1, 0, 1]]], device=DEVICE).bool() if ragged else None
    given = (keys.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda k, v: WAYS[way](k, v, index, valid=valid), given)


@pytest.mark.parametrize("way", WAYS)
def test_merging_is_forward_only(way):
    keys = torch.randn(1, 1, 4, 3, device=DEVICE, requires_grad=True)
    index, into = torch.tensor([1], device=DEVICE), torch.zeros(1, 1, 4, dtype=torch.int64, device=DEVICE)
    assert not any(x.requires_grad for x in WAYS[way](keys, keys, index, into=into))


def test_the_operator_is_a_good_citizen():
    keys = torch.randn(2, 3, 7, 16, device=DEVICE, requires_grad=True)
    values = torch.randn(2, 7, 3, 8, device=DEVICE).transpose(1, 2)
    index = torch.tensor([0, 3, 4], device=DEVICE)
    torch.library.opcheck(fused.operator, (keys, values, index, None, None, None))
    valid = torch.rand(2, 3, 3, device=DEVICE) > 0.5
    torch.library.opcheck(fused.operator, (keys, values, index, valid, None, None))
    into = torch.tensor([0, 0, -1, 1, 2, 2, 2], device=DEVICE)[None, None]
    torch.library.opcheck(fused.operator, (keys.detach(), values, index, None, into, None))


def test_compiled_code_keeps_the_operator_whole():
    keys = torch.randn(2, 3, 7, 16, device=DEVICE, requires_grad=True)
    index = torch.tensor([0, 3, 4], device=DEVICE)
    step = torch.compile(lambda x: fused.compact(x * 2, x, index)[0] * 3, fullgraph=True, backend="aot_eager")
    got = step(keys)
    assert torch.equal(got, keys[:, :, [0, 3, 4]] * 6)
    (grad,) = torch.autograd.grad(got.sum(), keys)
    assert torch.equal(grad.sum((0, 1, 3)), torch.tensor([1.0, 0, 0, 1, 1, 0, 0], device=DEVICE) * 6 * 96)


def test_the_dispatcher_runs_either():
    keys, index = torch.randn(1, 2, 5, 4), torch.tensor([1, 4])
    plain = steer_kernels.compact(keys, keys, index)
    with steer_kernels.prefer("triton"):
        assert steer_kernels.best("compact", "cpu") is fused.compact
        assert torch.equal(steer_kernels.compact(keys.to(DEVICE), keys.to(DEVICE), index.to(DEVICE))[0].cpu(), plain[0])


@pytest.mark.parametrize("kind", ["alike", "each its own", "ragged"])
def test_what_a_memory_keeps_goes_through_it(monkeypatch, kind):
    torch.manual_seed(0)
    keys, values = torch.randn(2, 3, 9, 4, device=DEVICE), torch.randn(2, 9, 3, 5, device=DEVICE).transpose(1, 2)
    keep = torch.rand(2, 3, 9, device=DEVICE).argsort(-1) < 4
    keep = keep[:1, :1].expand(2, 3, 9) if kind == "alike" else keep
    if kind == "ragged":
        keep = keep | (torch.arange(9, device=DEVICE) == 0)
    plain = pick(keys, values, torch.arange(9, device=DEVICE)[None, None], keep)
    launched, launch = [], fused.launch
    monkeypatch.setattr(fused, "launch", lambda *a: launched.append(a) or launch(*a))
    with steer_kernels.prefer("triton"):
        kept = pick(keys, values, torch.arange(9, device=DEVICE)[None, None], keep)
    assert len(launched) == 1
    for b, h in itertools.product(range(2), range(3)):
        for mine, x in zip(kept.dense(None), (keys, values), strict=True):
            rows = mine[b, h] if kept.valid is None else mine[b, h][kept.valid[b, h]]
            assert torch.equal(rows, x[b, h][keep[b, h]])
    assert all(torch.equal(x, y) for x, y in zip(kept.dense(None), plain.dense(None), strict=True))


KEYS, INDEX = torch.zeros(2, 3, 7, 4, device=DEVICE), torch.tensor([1, 2], device=DEVICE)
INTO = torch.zeros(2, 3, 7, dtype=torch.int64, device=DEVICE)
WRONG = {
    "keys of three dimensions": ({"keys": KEYS[0]}, ["(B, H, S, d)", "[3, 7, 4]"]),
    "values of another length": ({"values": KEYS[:, :, :6]}, ["[2, 3, 6, 4]"]),
    "an index of int32": ({"index": INDEX.int()}, ["int64", "int32"]),
    "an index for four heads": ({"index": INDEX.expand(1, 4, 2)}, ["3 or 1", "[1, 4, 2]"]),
    "valid of another shape": ({"valid": torch.ones(2, 3, 3, device=DEVICE).bool()}, ["[2, 3, 2]", "[2, 3, 3]"]),
    "weights alone": ({"weight": torch.ones(2, 3, 7, device=DEVICE)}, ["into"]),
    "ragged merging": ({"into": INTO, "valid": torch.ones(2, 3, 2, device=DEVICE).bool()}, ["into and valid"]),
    "into too short": ({"into": INTO[..., :6]}, ["into", "7", "[2, 3, 6]"]),
    "merging integers": ({"into": INTO, "keys": KEYS.int()}, ["int32"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(way, wrong):
    changed, facts = WRONG[wrong]
    with pytest.raises(ValueError) as error:
        WAYS[way](**{"keys": KEYS, "values": KEYS, "index": INDEX, **changed})
    assert all(fact in str(error.value) for fact in facts), str(error.value)


def test_a_column_that_is_not_there():
    with pytest.raises(IndexError, match="7"):
        WAYS["torch"](KEYS, KEYS, INDEX + 6)
    with pytest.raises(IndexError, match="2 kept"):
        WAYS["torch"](KEYS, KEYS, INDEX, into=INTO + 2)
    got, _ = WAYS["triton"](KEYS + 1, KEYS, torch.tensor([6, 7, -1], device=DEVICE))
    assert torch.equal(got[:, :, 0], KEYS[:, :, 0] + 1)
    assert not got[:, :, 1:].any()
