"""Score-space interventions against attention written out in fp64, in eager and SDPA, and without a (T, S) tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import steer
from steer import _relative, gates, ops, positions, sites
from steer._lse import masked_lse
from steer._scores import Call, add_bias, add_prefix
from steer.errors import InterventionError

from .helpers import HEAD_DIM, HEADS, KV_HEADS, LAYERS, dense_attention, randn, tiny_llama, tokens

IMPLEMENTATIONS = ("eager", "sdpa")


class Module(torch.nn.Module):
    """What an attention function reads of its module."""

    num_key_value_groups = HEADS // KV_HEADS
    is_causal = True


def qkv(batch: int, length: int, total: int, seed: int, dtype: torch.dtype = torch.float32):
    q = randn(batch, HEADS, length, HEAD_DIM, seed=seed)
    k, v = (randn(batch, KV_HEADS, total, HEAD_DIM, seed=seed + i) for i in (1, 2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def hidden_keys(batch: int, length: int, total: int, padded: int, window: int | None) -> torch.Tensor:
    """(B, 1, T, S), true where row i may not see key j: the future, beyond the window, left padding in row 0."""
    i = torch.arange(length)[:, None] + total - length
    j = torch.arange(total)[None]
    hidden = (j > i) | ((j <= i - window) if window else torch.zeros(1, dtype=torch.bool))
    hidden = hidden[None, None].repeat(batch, 1, 1, 1)
    hidden[0, :, :, :padded] = True
    hidden[:, :, torch.arange(length), torch.arange(length) + total - length] = False
    return hidden


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 7),
    past=st.integers(0, 4),
    padded=st.integers(0, 2),
    window=st.one_of(st.none(), st.integers(1, 4)),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bare=st.booleans(),
)
def test_key_bias_equals_the_explicit_mask(length, past, padded, window, seed, dtype, bare) -> None:
    past = 0 if bare else past
    q, k, v = qkv(2, length, length + past, seed, dtype)
    hidden = hidden_keys(2, length, length + past, 0 if bare else padded, None if bare else window)
    a, b = randn(2, HEADS, length, 1, seed=seed + 3), randn(2, 1, length + past, 1, seed=seed + 4)
    call = Call(q, k, v, None if bare else ~hidden, {}, "sdpa", True)
    extra = add_bias(call, [(a, b)])
    out, _ = sdpa_attention_forward(Module(), call.query, call.key, call.value, call.mask, **call.kwargs)
    out = out[..., :HEAD_DIM] if extra else out
    truth, _ = dense_attention(q, k, v, HEAD_DIM**-0.5, a @ b.transpose(-1, -2), hidden)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), truth.transpose(1, 2), rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 7), past=st.integers(0, 4), count=st.integers(1, 3), seed=st.integers(0, 999))
def test_prefix_equals_concatenation_that_every_row_sees(length, past, count, seed) -> None:
    past = 0 if length > 1 else past
    q, k, v = qkv(2, length, length + past, seed)
    pk, pv = randn(KV_HEADS, count, HEAD_DIM, seed=seed + 5), randn(KV_HEADS, count, HEAD_DIM, seed=seed + 6)
    call = Call(q, k, v, None, {}, "sdpa", True)
    add_prefix(call, pk, pv)
    out, _ = sdpa_attention_forward(Module(), call.query, call.key, call.value, call.mask, **call.kwargs)
    hidden = torch.nn.functional.pad(hidden_keys(2, length, length + past, 0, None), (count, 0))
    whole_k, whole_v = (torch.cat([p.expand(2, *p.shape), t], 2) for p, t in ((pk, k), (pv, v)))
    truth, _ = dense_attention(q, whole_k, whole_v, HEAD_DIM**-0.5, hidden=hidden)
    torch.testing.assert_close(out.double(), truth.transpose(1, 2), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 9),
    past=st.integers(0, 5),
    padded=st.integers(0, 3),
    window=st.one_of(st.none(), st.integers(1, 4)),
    form=st.sampled_from(["bool", "float", "padding"]),
    seed=st.integers(0, 999),
)
def test_lse_is_masked_and_causal(monkeypatch_chunk, length, past, padded, window, form, seed) -> None:
    q, k, v = qkv(2, length, length + past, seed)
    hidden = hidden_keys(2, length, length + past, padded, window)
    if form == "padding":
        keys = torch.ones(2, length + past, dtype=torch.long)
        keys[0, : min(padded, past)] = 0
        hidden = hidden_keys(2, length, length + past, min(padded, past), window)
        got = masked_lse(q, k, keys, HEAD_DIM**-0.5, causal=True, window=window)
    else:
        mask = (
            ~hidden if form == "bool" else torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
        )
        got = masked_lse(q, k, mask, HEAD_DIM**-0.5, causal=False)
    _, truth = dense_attention(q, k, v, HEAD_DIM**-0.5, hidden=hidden)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def monkeypatch_chunk():
    """Few scores at a time, so that the chunked path is the one tested."""
    from steer import _lse

    before, _lse.CHUNK = _lse.CHUNK, 16
    yield
    _lse.CHUNK = before


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_low_rank_query_is_hyper_icl_in_score_space(implementation) -> None:
    """K4 on the query equals adding g (Q U_q)(K U_k)^T / sqrt(r) to the scores, in the model."""
    model, ids, rank, layer = tiny_llama(implementation=implementation), tokens(), 3, 1
    u_q, u_k = randn(HEADS, HEAD_DIM, rank, scale=0.4), randn(HEADS, HEAD_DIM, rank, seed=1, scale=0.4)
    w, b = randn(HEADS, HEAD_DIM, seed=2), randn(HEADS, seed=3)
    with steer.record(model, *(site(layers=layer) for site in (sites.head_q, sites.head_k, sites.head_v))) as acts:
        model(ids)
    q, k, v = (acts[name, layer].double() for name in ("head_q", "head_k", "head_v"))
    normed = torch.nn.functional.layer_norm(q, (HEAD_DIM,), eps=1e-5)
    g = torch.sigmoid(torch.einsum("bhtd,hd->bht", normed, w.double()) + b.double()[:, None])
    repeated = k.repeat_interleave(HEADS // KV_HEADS, dim=1)
    low = torch.einsum("bhtd,hdr->bhtr", q, u_q.double()) @ torch.einsum("bhsd,hdr->bhrs", repeated, u_k.double())
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    truth, _ = dense_attention(q, k, v, HEAD_DIM**-0.5, g[..., None] * low / rank**0.5, causal)
    change = steer.Intervention(
        sites.head_q(layers=layer), ops.LowRankQuery(u_q, u_k), gates.Sigmoid(w, b, layer_norm=True)
    )
    with steer.attach(model, change), steer.record(model, sites.head_out(layers=layer)) as acts:
        model(ids)
    torch.testing.assert_close(acts["head_out", layer].double(), truth.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("padded", [0, 3])
def test_mimic_gate_reads_the_true_masked_lse(implementation, padded) -> None:
    """K3 with c = 1: the gate sees no future token and no padding, which the authors' code does."""
    model, ids, layer = tiny_llama(implementation=implementation), tokens(), 2
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    v, w, b = randn(HEADS, HEAD_DIM), randn(HEADS, HEAD_DIM, seed=1), randn(HEADS, seed=2)
    with steer.record(
        model, sites.head_q(layers=layer), sites.head_k(layers=layer), sites.head_out(layers=layer)
    ) as acts:
        model(ids, attention_mask=mask)
    q, k, o = (acts[name, layer].double() for name in ("head_q", "head_k", "head_out"))
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1) | (mask == 0)[:, None, None, :]
    _, lse = dense_attention(q, k, k, HEAD_DIM**-0.5, hidden=hidden)
    g = torch.sigmoid(torch.einsum("bhtd,hd->bth", q, w.double()) + b.double() - lse.transpose(1, 2))
    truth = o + g[..., None] * v.double()
    change = steer.Intervention(sites.head_out(layers=layer), ops.Add(v), gates.Sigmoid(w, b, minus_lse=True))
    with steer.attach(model, change), steer.record(model, sites.head_out(layers=layer)) as acts:
        model(ids, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(acts["head_out", layer].double()[real], truth[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_key_bias_in_a_model_renormalises_over_the_chosen_keys(implementation) -> None:
    model, ids, layer, heads = tiny_llama(implementation=implementation), tokens(), 1, [0, 5]
    with steer.record(model, *(site(layers=layer) for site in (sites.head_q, sites.head_k, sites.head_v))) as acts:
        model(ids)
    q, k, v = (acts[name, layer] for name in ("head_q", "head_k", "head_v"))
    bias = torch.zeros(HEADS, 9, 9)
    bias[heads, 4:, 2:5] = 1.5
    causal = torch.ones(9, 9, dtype=torch.bool).triu(1)
    truth, _ = dense_attention(q, k, v, HEAD_DIM**-0.5, bias[None], causal)
    site = sites.key_bias(layers=layer, heads=heads, positions=positions.span(4))
    change = steer.Intervention(site, ops.KeyBias(1.5, positions.span(2, 5)))
    with steer.attach(model, change), steer.record(model, sites.head_out(layers=layer)) as acts:
        model(ids)
    torch.testing.assert_close(acts["head_out", layer].double(), truth.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_infinite_bias_is_clamped_and_a_fully_biased_row_stays_finite() -> None:
    model, ids = tiny_llama(), tokens()
    change = steer.Intervention(sites.key_bias(), ops.KeyBias(-torch.inf, positions.span(0, 9)))
    with steer.attach(model, change):
        assert model(ids).logits.isfinite().all()


class Sizes(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize(
    "change",
    [
        steer.Intervention(sites.head_q(), ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), randn(HEADS, HEAD_DIM, 2))),
        steer.Intervention(sites.key_bias(), ops.KeyBias(1.0, positions.span(3, 40))),
        steer.Intervention(
            sites.head_out(), ops.Add(randn(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM), layer_norm=True)
        ),
    ],
    ids=["K4", "K5", "K3"],
)
def test_no_score_matrix_is_made_at_prefill(change) -> None:
    """The largest tensor stays below one head's (T, S); plain eager attention, for contrast, makes H of them."""
    length = 512
    model = tiny_llama(intermediate_size=64)
    ids = tokens(1, length)
    with steer.attach(model, change, measure="none"), Sizes() as sizes:
        model.model(ids)
    assert sizes.largest < length * length
    model.set_attn_implementation("eager")
    with Sizes() as sizes:
        model.model(ids)
    assert sizes.largest >= length * length


def test_attention_names_that_modules_compare_still_answer() -> None:
    """A module that asks its config for "sdpa" inside forward gets a yes, and the registry still finds ours."""
    from steer._attention import _Key

    key = _Key.like("sdpa", compares=True)
    assert key == "sdpa"
    assert key == "sdpa"
    assert key in ("eager", "sdpa")
    assert key != "eager"
    assert {str(key): 1}[key] == 1
    assert key not in {"sdpa": 1} or hash(key) == hash("sdpa")


def test_every_layer_shape_of_parameters_is_taken_from_its_own_place() -> None:
    """A per-layer parameter given for layers [2, 0] goes to layer 2 first."""
    model, ids = tiny_llama(), tokens()
    v = torch.stack([torch.zeros(LAYERS - 1, HEADS, HEAD_DIM)[0], randn(HEADS, HEAD_DIM)])
    with steer.attach(model, steer.Intervention(sites.head_out(layers=[2, 0]), ops.Add(v))):
        got = model(ids).logits
    with steer.attach(model, steer.Intervention(sites.head_out(layers=0), ops.Add(v[1]))):
        assert torch.equal(got, model(ids).logits)


def test_a_prefix_stands_at_no_distance_in_attention_with_learned_distances() -> None:
    """T5's bias by distance is for the keys that have one: those in front get zeros, the others keep theirs."""
    q, k, v = qkv(1, 3, 3, seed=0)
    bias = randn(1, HEADS, 3, 3, seed=1)
    call = Call(q, k, v, None, {"scaling": 1.0, "position_bias": bias}, "eager", False)
    add_prefix(call, randn(KV_HEADS, 2, HEAD_DIM, seed=2), randn(KV_HEADS, 2, HEAD_DIM, seed=3))
    assert call.key.shape[2] == 5
    assert torch.equal(call.kwargs["position_bias"][..., 2:], bias)
    assert (call.kwargs["position_bias"][..., :2] == 0).all()


@pytest.mark.parametrize("add", [_relative.check, lambda call: add_prefix(call, *[randn(KV_HEADS, 1, HEAD_DIM)] * 2)])
def test_a_mask_of_a_kind_that_is_not_known_is_refused(add) -> None:
    with pytest.raises(InterventionError, match="str of mine attention"):
        add(Call(*qkv(1, 3, 3, seed=0), "a mask", {}, "mine", False))
