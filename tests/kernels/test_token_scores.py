"""Attention mass per key against a dense softmax in fp64, written as loops over heads."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steer_kernels
from steer_kernels import token_scores

# query heads, KV heads: no groups, groups, one KV head for all
HEADS = ((4, 4), (6, 2), (8, 1))
REDUCE = ("sum", "mean", "max")


def dense(query, key, scaling, visible=None, bias=None, rows=None, reduce="sum"):
    """The definition, one KV head of one batch row at a time; `visible` bool and `bias` are (B, H, W, S)."""
    batch, heads, window, _ = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    out = torch.zeros(batch, kv_heads, keys, dtype=torch.float64)
    for b in range(batch):
        for h in range(kv_heads):
            seen = []
            for head in range(h * heads // kv_heads, (h + 1) * heads // kv_heads):
                for w in range(window):
                    allowed = torch.ones(keys, dtype=torch.bool) if visible is None else visible[b, head, w]
                    if (rows is not None and not rows[b, w]) or not allowed.any():
                        continue
                    score = scaling * (key[b, h].double() @ query[b, head, w].double())
                    if bias is not None:
                        score = score + bias[b, head, w].double()
                    exp = torch.where(allowed, (score - score[allowed].max()).exp(), 0.0)
                    seen.append(exp / exp.sum())
            if seen:
                stacked = torch.stack(seen)
                out[b, h] = {"sum": stacked.sum(0), "mean": stacked.mean(0), "max": stacked.amax(0)}[reduce]
    return out


def inputs(heads, kv_heads, window=5, keys=11, batch=2, dim=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(batch, heads, window, dim, generator=generator)
    key = 2 * torch.randn(batch, kv_heads, keys, dim, generator=generator)
    return query.to(dtype), key.to(dtype)


def causal(window, keys, batch=1, padding=0):
    """Left-padded causal visibility (B, 1, W, S) of a window at the end of the keys; row 0 has the padding."""
    position = torch.arange(keys - window, keys)
    visible = (torch.arange(keys) <= position[:, None]).expand(batch, 1, window, keys).clone()
    visible[0, :, :, :padding] = False
    return visible


@pytest.mark.parametrize("heads, kv_heads", HEADS)
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-6), (torch.float64, 1e-12)])
def test_without_a_mask(heads, kv_heads, reduce, dtype, tolerance):
    query, key = inputs(heads, kv_heads, dtype=dtype)
    got = token_scores(query, key, 0.3, reduce=reduce)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(got.double(), dense(query, key, 0.3, reduce=reduce), atol=tolerance)


@pytest.mark.parametrize("heads, kv_heads", HEADS)
@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize("kind", ["bool", "-inf", "lowest", "bf16 lowest, widened"])
def test_causal_and_left_padded(heads, kv_heads, reduce, kind):
    # 9 of 11 keys of row 0 are padding, so 3 of its 5 queries see nothing.
    query, key = inputs(heads, kv_heads)
    visible = causal(5, 11, batch=2, padding=9)
    assert (~visible.any(-1)).sum() == 3
    dtype = torch.bfloat16 if kind.startswith("bf16") else torch.float32
    low = -math.inf if kind == "-inf" else torch.finfo(dtype).min
    additive = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, low).float()
    got = token_scores(query, key, 0.3, visible if kind == "bool" else additive, reduce=reduce)
    true = dense(query, key, 0.3, visible.expand(2, heads, 5, 11), reduce=reduce)
    assert torch.allclose(got.double(), true, atol=2e-6)
    assert (got[0, :, :9] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 5, 11), (2, 1, 5, 11), (1, 6, 5, 11), (2, 6, 5, 11), (2, 1, 1, 11)])
def test_an_additive_bias_broadcasts(shape):
    query, key = inputs(6, 2)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    true = dense(query, key, 0.3, bias=bias.expand(2, 6, 5, 11))
    assert torch.allclose(token_scores(query, key, 0.3, bias).double(), true, atol=2e-6)


def test_a_mask_of_one_query_head_is_its_own():
    query, key = inputs(6, 2)
    visible = torch.ones(1, 6, 5, 11, dtype=torch.bool)
    visible[0, 4, :, 3:] = False
    true = dense(query, key, 0.3, visible.expand(2, 6, 5, 11))
    assert torch.allclose(token_scores(query, key, 0.3, visible).double(), true, atol=2e-6)


@pytest.mark.parametrize("reduce", REDUCE)
def test_only_rows_that_count(reduce):
    query, key = inputs(6, 2)
    rows = torch.tensor([[False, True, False, True, True], [False] * 5])
    query[0, :, 0] = math.nan  # what padding holds must not matter
    got = token_scores(query, key, 0.3, causal(5, 11), rows=rows, reduce=reduce)
    true = dense(query, key, 0.3, causal(5, 11).expand(2, 6, 5, 11), rows=rows, reduce=reduce)
    assert torch.allclose(got.double(), true, atol=2e-6)
    assert (got[1] == 0).all()


def test_a_key_that_nobody_sees_may_hold_anything():
    query, key = inputs(6, 2)
    visible = causal(5, 11, batch=2, padding=2)
    visible[1, :, :, :2] = False
    clean = token_scores(query, key, 0.3, visible)
    key[:, :, :2] = math.nan
    assert torch.equal(token_scores(query, key, 0.3, visible), clean)


def test_one_query():
    query, key = inputs(8, 2, window=1)
    assert torch.allclose(token_scores(query, key, 0.5).double(), dense(query, key, 0.5), atol=2e-6)


def test_sharp_attention_in_bf16_does_not_overflow():
    query, key = inputs(4, 2, dtype=torch.bfloat16)
    got = token_scores(query * 200, key * 200, 1.0)
    assert got.isfinite().all()
    assert torch.allclose(got.sum(-1), torch.tensor(10.0), atol=1e-4)


@pytest.mark.parametrize("reduce", REDUCE)
def test_chunks_agree_with_the_whole(monkeypatch, reduce):
    query, key = inputs(6, 2, window=7)
    whole = token_scores(query, key, 0.3, causal(7, 11), reduce=reduce)
    sizes = []
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, *a, **k: sizes.append(x.shape[2] // 3) or softmax(x, *a, **k))
    monkeypatch.setattr(sys.modules["steer_kernels.token_scores"], "CHUNK", 2 * 3 * 11)
    monkeypatch.setattr(sys.modules["steer_kernels.token_scores"], "LEAST", 1)
    got = token_scores.reference(query, key, 0.3, causal(7, 11), reduce=reduce)
    assert torch.allclose(got, whole, atol=1e-6)
    assert sizes == 4 * [2, 2, 2, 1]  # once for each batch row and KV head


@given(
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 4),
    window=st.integers(1, 6),
    more=st.integers(0, 6),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**20),
)
def test_laws(kv_heads, groups, window, more, padding, seed):
    keys = window + more
    query, key = inputs(kv_heads * groups, kv_heads, window, keys, seed=seed)
    visible = causal(window, keys, batch=2, padding=min(padding, keys))
    total = token_scores(query, key, 0.3, visible)
    # Each query head hands out a mass of one for each of its queries that sees anything.
    live = visible.any(-1).sum((1, 2)).float()
    assert torch.allclose(total.sum(-1), (live * groups)[:, None].expand(2, kv_heads), atol=1e-4)
    mean = token_scores(query, key, 0.3, visible, reduce="mean")
    assert torch.allclose(mean * (live * groups).clamp_min(1)[:, None, None], total, atol=1e-5)
    # Observing in two parts and adding is observing at once.
    rows = torch.rand(2, window, generator=torch.Generator().manual_seed(seed)) < 0.5
    parts = [token_scores(query, key, 0.3, visible, rows=part) for part in (rows, ~rows)]
    assert torch.allclose(parts[0] + parts[1], total, atol=1e-5)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"query": torch.zeros(2, 5, 3, 8)}, "5 query heads"),
        ({"query": torch.zeros(2, 6, 3, 7)}, "(2, 6, 3, 7)"),
        ({"mask": torch.ones(2, 1, 3, 12, dtype=torch.bool)}, "(2, 1, 3, 12)"),
        ({"mask": torch.ones(3, 11, dtype=torch.bool)}, "(3, 11)"),
        ({"mask": torch.ones(2, 1, 3, 11, dtype=torch.int64)}, "int64"),
        ({"rows": torch.ones(2, 4, dtype=torch.bool)}, "(2, 4)"),
        ({"rows": torch.ones(2, 3)}, "float32"),
        ({"reduce": "median"}, "'median'"),
    ],
)
def test_wrong_calls_say_what_was_given(change, says):
    query, key = inputs(6, 2, window=3)
    call = {"key": key, "scaling": 0.3, **change}
    with pytest.raises(ValueError) as caught:
        token_scores(call.pop("query", query), **call)
    assert says in str(caught.value)


def test_it_is_dispatched():
    assert steer_kernels.best("token_scores", "cpu") is token_scores.reference
