"""KeyBias(relative=True): scores raised by a share of their own size, against attention written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import AttentionInterface

import steer
from steer import ops, positions, sites
from steer._relative import Share, rewrite
from steer._scores import Call
from steer.errors import InterventionError

from .helpers import HEADS, KV_HEADS, LAYERS, dense_attention, randn, tiny_llama, tokens

ALPHA = 0.6


def boost(where: positions.Positions, keys: positions.Positions, value: Any = ALPHA, **site: Any) -> steer.Intervention:
    return steer.Intervention(sites.key_bias(positions=where, **site), ops.KeyBias(value, keys, relative=True))


@contextmanager
def by_hand(model: Any, queries: torch.Tensor, keys: torch.Tensor, alpha: float, layers: tuple[int, ...]) -> Iterator:
    """The model with attention in fp64 whose scores are raised by alpha |S| where a query (B, S) meets a key (B, S)."""

    def attend(module, query, key, value, mask, scaling=None, **kwargs):
        total, length = key.shape[2], query.shape[2]
        groups = query.shape[1] // key.shape[1]
        k, v = (t.double().repeat_interleave(groups, dim=1) for t in (key, value))
        scores = query.double() @ k.transpose(-1, -2) * scaling
        if module.layer_idx in layers:
            rows = queries[:, None, total - length : total, None] & keys[:, None, None, :total]
            scores = scores + alpha * scores.abs() * rows
        scores = scores.masked_fill(~mask, -torch.inf) if mask is not None else scores
        if mask is None and length > 1:
            scores = scores.masked_fill(torch.ones(length, total).triu(total - length + 1).bool(), -torch.inf)
        return (scores.softmax(-1).nan_to_num() @ v).to(query.dtype).transpose(1, 2), None

    before = model.config._attn_implementation
    AttentionInterface._global_mapping["by-hand"] = attend
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    MASKS._global_mapping["by-hand"] = MASKS["sdpa"]
    model.config._attn_implementation = "by-hand"
    try:
        yield
    finally:
        model.config._attn_implementation = before
        del AttentionInterface._global_mapping["by-hand"], MASKS._global_mapping["by-hand"]


def chosen(batch: int, total: int, *slots: int) -> torch.Tensor:
    rows = torch.zeros(batch, total, dtype=torch.bool)
    rows[:, list(slots)] = True
    return rows


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_last_row_sees_raised_scores_and_no_other_row_does(implementation: str) -> None:
    model, ids = tiny_llama(implementation=implementation).double(), tokens()
    with by_hand(model, chosen(2, 9, 8), chosen(2, 9, 2, 3, 4), ALPHA, tuple(range(LAYERS))):
        wanted = model(input_ids=ids).logits
    plain = model(input_ids=ids).logits
    with steer.attach(model, boost(positions.last_prompt(), positions.span(2, 5))):
        got = model(input_ids=ids).logits
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got[:, :-1], plain[:, :-1])
    assert (got[:, -1] - plain[:, -1]).abs().max() > 1e-3


def test_chosen_layers_and_heads_only() -> None:
    model, ids = tiny_llama().double(), tokens()
    value = torch.zeros(HEADS, dtype=torch.float64)
    value[[1, 6]] = ALPHA
    with steer.attach(model, boost(positions.last_prompt(), positions.span(0, 4), value, layers=[1])):
        wanted = model(input_ids=ids).logits
    with steer.attach(model, boost(positions.last_prompt(), positions.span(0, 4), layers=[1], heads=[1, 6])):
        got = model(input_ids=ids).logits
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)
    with by_hand(model, chosen(2, 9, 8), chosen(2, 9, 0, 1, 2, 3), ALPHA, (1,)):
        every_head = model(input_ids=ids).logits
    with steer.attach(model, boost(positions.last_prompt(), positions.span(0, 4), layers=[1])):
        torch.testing.assert_close(model(input_ids=ids).logits, every_head, atol=1e-6, rtol=1e-5)
    assert (got - every_head).abs().max() > 1e-4


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_left_padded_rows_are_raised_as_they_are_alone(implementation: str) -> None:
    model = tiny_llama(implementation=implementation)
    short, long = tokens(1, 6, seed=1), tokens(1, 9, seed=2)
    batch = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    mask = (batch != 0).long()
    change = boost(positions.answer(), positions.span(1, 4))
    with steer.attach(model, change):
        together = model.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False)
        alone = [model.generate(ids, max_new_tokens=5, do_sample=False) for ids in (short, long)]
    for row, ids, single in zip(together, (short, long), alone, strict=True):
        assert torch.equal(row[-5:], single[0, ids.shape[1] :])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_written_tokens_with_a_cache_are_those_of_a_whole_forward(implementation: str) -> None:
    model, ids = tiny_llama(implementation=implementation).double(), tokens(2, 7)
    with steer.attach(model, boost(positions.answer(), positions.span(1, 5))):
        written = model.generate(
            ids, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    total = written.sequences.shape[1]
    keys, queries = chosen(2, total, 1, 2, 3, 4), torch.arange(total)[None].expand(2, -1) >= 6
    with by_hand(model, queries, keys, ALPHA, tuple(range(LAYERS))):
        whole = model(input_ids=written.sequences).logits[:, 6:-1]
    torch.testing.assert_close(torch.stack(written.logits, 1).double(), whole, atol=1e-5, rtol=1e-4)


def test_beams_and_a_static_cache() -> None:
    model, ids = tiny_llama(), tokens(2, 7)
    with steer.attach(model, boost(positions.answer(), positions.span(1, 5))):
        dynamic = model.generate(ids, max_new_tokens=4, num_beams=3, do_sample=False)
        static = model.generate(ids, max_new_tokens=4, num_beams=3, do_sample=False, cache_implementation="static")
    assert torch.equal(dynamic, static)


@given(
    length=st.integers(2, 9),
    past=st.integers(0, 4),
    prefix=st.integers(0, 2),
    window=st.sampled_from([None, 3]),
    masked=st.booleans(),
    several=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_rewritten_rows_equal_attention_written_out(length, past, prefix, window, masked, several, seed) -> None:
    """Any rows, with other biases, with keys that get no share, under a mask or a causal rule with a window."""
    batch, width, total = 2, 5, length + past
    q = randn(batch, HEADS, length, width, seed=seed)
    k, v = randn(batch, KV_HEADS, total, width, seed=seed + 1), randn(batch, KV_HEADS, total, width, seed=seed + 2)
    keys = torch.arange(total)
    seen = keys[None, :] <= torch.arange(length)[:, None] + past
    if window is not None:
        seen &= keys[None, :] > torch.arange(length)[:, None] + past - window
    mask = seen.expand(batch, 1, length, total) if masked else None
    rows = torch.stack([torch.randperm(length)[:2] for _ in range(batch)])
    where = torch.zeros(batch, 1, length, 1).index_fill(0, torch.tensor([]).long(), 0.0)
    where.scatter_(2, rows[:, None, :, None], 1.0)
    a = where * randn(1, HEADS, 1, 1, seed=seed + 3)
    b = (torch.rand(batch, 1, total, 1, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    b[:, :, :prefix] = 0
    shares = [Share(a, b, None if several else rows)]
    plain = [(randn(1, HEADS, length, 1, seed=seed + 4), randn(1, 1, total, 1, seed=seed + 5))]
    call = Call(q, k, v, mask, {"sliding_window": window}, "sdpa", True)

    def attend(part: Call) -> torch.Tensor:
        bias = part.mask
        return dense_attention(part.query, part.key, part.value, part.scaling, bias)[0].transpose(1, 2)

    scores = q @ k.repeat_interleave(HEADS // KV_HEADS, 1).transpose(-1, -2) * width**-0.5
    bias = plain[0][0] @ plain[0][1].transpose(-1, -2) + (a @ b.transpose(-1, -2)) * scores.abs()
    wanted, _ = dense_attention(q, k, v, width**-0.5, bias, ~seen)
    untouched = torch.full((batch, length, HEADS, width), 7.0)
    got = rewrite(untouched, call, plain, shares, attend)
    here = where[:, 0].bool() if not several else torch.ones(batch, length, 1, dtype=torch.bool)
    expected = torch.where(here[..., None], wanted.transpose(1, 2).float(), untouched)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_it_goes_with_a_constant_bias_and_a_prefix_in_one_session() -> None:
    eager, sdpa = tiny_llama(implementation="eager"), tiny_llama(implementation="sdpa")
    changes = [
        steer.Intervention(sites.key_bias(), ops.KeyBias(0.8, positions.span(0, 3))),
        boost(positions.last_prompt(), positions.span(2, 6)),
        steer.Intervention(sites.kv_prefix(), ops.Prefix(randn(KV_HEADS, 2, 12), randn(KV_HEADS, 2, 12, seed=1))),
        boost(positions.span(3, 7), positions.span(0, 2), -0.3),
    ]
    got = []
    for model in (eager, sdpa):
        with steer.attach(model, changes):
            got.append(model(input_ids=tokens()).logits)
    torch.testing.assert_close(got[1], got[0], atol=2e-5, rtol=1e-4)


def test_zero_is_the_identity() -> None:
    model, ids = tiny_llama(), tokens()
    with steer.attach(model, boost(positions.last_prompt(), positions.span(1, 5), 0.0)):
        got = model(input_ids=ids).logits
    torch.testing.assert_close(got, model(input_ids=ids).logits)


def test_it_can_be_learned() -> None:
    model, ids = tiny_llama(), tokens()
    alpha = torch.tensor(0.2, requires_grad=True)
    with steer.attach(model, boost(positions.last_prompt(), positions.span(1, 5), alpha)):
        model(input_ids=ids).logits[:, -1, 0].sum().backward()
    assert alpha.grad is not None
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad(), steer.attach(model, boost(positions.last_prompt(), positions.span(1, 5), 0.2 + step)):
            values.append(model(input_ids=ids).logits[:, -1, 0].sum())
    assert alpha.grad.item() == pytest.approx((values[0] - values[1]).item() / 2e-2, rel=0.05)


def test_attention_that_shows_no_scores_is_refused() -> None:
    call = Call(*(torch.zeros(1, 1, 2, 2),) * 3, None, {}, "flash_attention_2", True)
    from steer._relative import check

    with pytest.raises(InterventionError, match="flash_attention_2 attention does not show"):
        check(call)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_infinite_bias_touches_only_the_rows_that_were_chosen(implementation: str) -> None:
    model, ids = tiny_llama(implementation=implementation), tokens()
    where, keys = positions.last_prompt(), positions.span(0, 4)
    with steer.attach(model, steer.Intervention(sites.key_bias(positions=where), ops.KeyBias(-torch.inf, keys))):
        got = model(input_ids=ids).logits
    with steer.attach(model, steer.Intervention(sites.key_bias(positions=where), ops.KeyBias(-1e4, keys))):
        wanted = model(input_ids=ids).logits
    assert got.isfinite().all()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(got[:, :-1], model(input_ids=ids).logits[:, :-1], atol=1e-4, rtol=1e-4)


def test_a_bias_by_position_is_that_of_the_row() -> None:
    """Of models that hand a table of distances on: (1, H, T, S)."""
    torch.manual_seed(0)
    q, k, v = randn(2, HEADS, 6, 5), randn(2, KV_HEADS, 6, 5, seed=1), randn(2, KV_HEADS, 6, 5, seed=2)
    table, rows = randn(1, HEADS, 6, 6, seed=3), torch.tensor([[4], [2]])
    a = torch.zeros(2, HEADS, 6, 1).scatter(2, rows[:, None, :, None].expand(-1, HEADS, -1, -1), ALPHA)
    b = torch.ones(1, 1, 6, 1)
    call = Call(q, k, v, None, {"position_bias": table}, "sdpa", False)

    def attend(part: Call) -> torch.Tensor:
        bias = part.mask + part.kwargs["position_bias"]
        return dense_attention(part.query, part.key, part.value, part.scaling, bias)[0].transpose(1, 2)

    scores = q @ k.repeat_interleave(HEADS // KV_HEADS, 1).transpose(-1, -2) * 5**-0.5
    wanted, _ = dense_attention(q, k, v, 5**-0.5, table + a * scores.abs())
    got = rewrite(torch.zeros(2, 6, HEADS, 5), call, [], [Share(a, b, rows)], attend)
    for row, place in enumerate((4, 2)):
        torch.testing.assert_close(got[row, place], wanted[row, :, place].float(), atol=1e-5, rtol=1e-4)


def test_constant_biases_on_some_rows_and_on_several_sets_of_keys_are_summed() -> None:
    """Rows from the first on but not all, and keys that differ: against scores changed by hand in fp64."""
    model, ids = tiny_llama(num_hidden_layers=1).double(), tokens()
    with steer.record(model, sites.head_q(), sites.head_k(), sites.head_v()) as seen:
        model(input_ids=ids)
    parts = [(positions.span(0, 3), positions.span(1, 4), 0.7), (positions.span(2, 9), positions.span(0, 2), -1.1)]
    changes = [
        steer.Intervention(sites.key_bias(positions=where), ops.KeyBias(value, keys)) for where, keys, value in parts
    ]
    with steer.attach(model, changes), steer.record(model, sites.head_out()) as after:
        model(input_ids=ids)
    bias = torch.zeros(1, 1, 9, 9)
    bias[..., 0:3, 1:4] += 0.7
    bias[..., 2:9, 0:2] -= 1.1
    hidden = torch.ones(9, 9).triu(1).bool()
    q, k, v = (seen[name, 0] for name in ("head_q", "head_k", "head_v"))
    wanted, _ = dense_attention(q, k, v, q.shape[-1] ** -0.5, bias, hidden)
    torch.testing.assert_close(after["head_out", 0], wanted.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_several_answer_rows_in_one_padded_forward() -> None:
    """As where guesses are checked: the prompt's last row and those after it pass together."""
    ids = tokens(2, 9)
    ids[0, :2] = 0
    got = []
    for implementation in ("eager", "sdpa"):
        model = tiny_llama(implementation=implementation)
        change = boost(positions.answer(), positions.span(1, 4))
        with steer.attach(model, change, prompt_length=6):
            got.append(model(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, 2:])
    torch.testing.assert_close(got[1], got[0], atol=2e-5, rtol=1e-4)
