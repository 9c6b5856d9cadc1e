"""Activations near fp16's largest number, 65,504: what is summed and squared is so in fp32, and stays finite."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

import steer
from steer import gates, ops, positions, sites
from steer.memory import Scorer, Seen
from tests.engine.helpers import HEAD_DIM, HEADS, KV_HEADS, WIDTH, randn, tiny_llama, tokens

from .outcomes import written
from .precisions import TOLERANCE, bits, distance, precise
from .recipes import CHOOSING, WRITING

NEAR = 30_000.0
"""The largest number that enters the first layer, to a factor of 2."""
WIDE = ops.Add(randn(WIDTH, scale=NEAR / 40))


def on_rows(op: Any, gate: Any = None) -> Any:
    return lambda: steer.Intervention(sites.resid_out(), op, gate)


CHANGES = {
    "add": on_rows(WIDE),
    "keeping the length": on_rows(ops.Add(randn(WIDTH, scale=NEAR / 40), keep_norm=True)),
    "by the row's length": on_rows(ops.Add(randn(WIDTH, scale=0.01), relative=True)),
    "ICV's cosine": on_rows(WIDE, gates.Cosine()),
    "a gate of the row": on_rows(WIDE, gates.Sigmoid(randn(WIDTH, scale=1e-4), of_query=False)),
    "a normed gate": on_rows(WIDE, gates.Sigmoid(randn(WIDTH), layer_norm=True, of_query=False)),
    "rotate": on_rows(ops.Rotate(randn(WIDTH), randn(WIDTH, seed=1), 0.5)),
    "less the log-sum-exp": lambda: steer.Intervention(
        sites.head_out(), ops.Add(randn(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM), minus_lse=True)
    ),
    "query": lambda: steer.Intervention(
        sites.head_q(), ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), randn(HEADS, HEAD_DIM, 2))
    ),
    "bias up": lambda: steer.Intervention(sites.key_bias(), ops.KeyBias(1e4, positions.span(2, 5))),
    "bias down": lambda: steer.Intervention(sites.key_bias(), ops.KeyBias(-1e4, positions.span(2, 5))),
    "bias of all": lambda: steer.Intervention(sites.key_bias(), ops.KeyBias(-1e4)),
    "prefix": lambda: steer.Intervention(
        sites.kv_prefix(), ops.Prefix(randn(KV_HEADS, 2, HEAD_DIM), randn(KV_HEADS, 2, HEAD_DIM))
    ),
}


@cache
def pair(attention: str) -> tuple[Any, Any]:
    """A Llama in fp16 whose residual stream is near the limit, and the same weights in fp32."""
    half = tiny_llama(implementation=attention)
    half.model.embed_tokens.weight.mul_(NEAR / half.model.embed_tokens.weight.abs().max())
    half = half.half()
    return half, copy.deepcopy(half).float()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_op_is_finite_and_right(name, attention):
    """A padded batch, so that a bias meets hidden keys too, and a step on its cache."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    found = []
    for model in pair(attention):
        with torch.no_grad(), steer.attach(model, CHANGES[name]()):
            first = model(tokens(), attention_mask=mask)
            more = torch.cat([mask, mask[:, -1:]], dim=1)
            second = model(tokens(2, 1, seed=1), attention_mask=more, past_key_values=first.past_key_values)
        found.append(torch.cat([first.logits[:, 3:], second.logits], dim=1))
    assert found[0].isfinite().all()
    assert distance(*found) <= TOLERANCE["bfloat16"]


def test_the_length_of_a_wide_row_is_not_squared_in_half_precision():
    """4,096 numbers of 300 are a row of length 19,200, whose square is 3.7e8; of 2e4, of length 1.3e6."""
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    llama = tiny_llama(hidden_size=4096, num_hidden_layers=1, intermediate_size=8, **heads).half()
    for size in (300.0, 2e4):
        with torch.no_grad(), steer.record(llama, sites.resid_in([0])) as before:
            llama.model.embed_tokens.weight.fill_(size)
            llama(tokens(1, 3))
        step = steer.Intervention(sites.resid_in([0]), ops.Add(torch.randn(4096) * size / 2, keep_norm=True))
        with torch.no_grad(), steer.attach(llama, step), steer.record(llama, sites.resid_in([0])) as after:
            llama(tokens(1, 3))
        old, new = before["resid_in", 0].double(), after["resid_in", 0].double()
        assert new.isfinite().all()
        torch.testing.assert_close(new.norm(dim=-1), old.norm(dim=-1), rtol=1e-3, atol=0)
        assert (new - old).norm() > 0.1 * old.norm()


@cache
def large() -> Any:
    """tiny-vlm in fp16 whose words and pictures have numbers up to 30,000 where they enter the text tower."""
    half = copy.deepcopy(precise("tiny-vlm", "float16").model)
    words, pictures = half.model.language_model.embed_tokens, half.model.multi_modal_projector.linear_2
    # words are read from the very weights that they are written with; the latter stay small
    half.lm_head.weight = torch.nn.Parameter(half.lm_head.weight.detach().clone(), requires_grad=False)
    with torch.no_grad():
        words.weight.mul_(NEAR / words.weight.abs().max())
        seen = []
        handle = pictures.register_forward_hook(lambda m, a, out: seen.append(out.abs().max()))
        written(half, precise("tiny-vlm", "float16").processor, None, steer.zoo.examples("colour", "dev", 3))
        handle.remove()
        for weight in pictures.parameters():
            weight.mul_(NEAR / seen[0])
    return half


@pytest.mark.parametrize("name", [*WRITING, *CHOOSING])
def test_a_method_is_fitted_and_steers_in_finite_numbers(name):
    half = large()
    processor, examples = precise("tiny-vlm", "float16").processor, steer.zoo.examples("colour", "demo", 8)
    weights = bits(half)
    method = {**WRITING, **CHOOSING}[name](half, processor, examples)
    assert all(value.isfinite().all() for value in method.tensors.values())
    got = written(half, processor, method, steer.zoo.examples("colour", "dev", 3))
    assert not got.isnan().any()
    assert not got.isposinf().any()
    assert bool(got.isneginf().any()) is (name in ("pai", "vcd"))
    assert all(torch.equal(value, weights[key]) for key, value in bits(half).items())


def seen(dtype: torch.dtype) -> Seen:
    """Queries, keys and values of 300 with heads of 64: a score is 7e5, and ten times what fp16 holds."""
    query, key, value = (
        randn(2, heads, 12, 64, seed=i, scale=300).half().to(dtype) for i, heads in enumerate((4, 2, 2))
    )
    real = torch.ones(2, 2, 12, dtype=torch.bool)
    slots, images = torch.arange(12), torch.zeros(2, 12, dtype=torch.bool)
    return Seen(
        query, key, value, 0.125, slots.view(1, 1, -1), real, real, slots, real[:, 0], images=lambda: images | True
    )


@pytest.mark.parametrize("name", CHOOSING)
def test_a_scorer_scores_half_precision_as_fp32(name):
    method: Any = CHOOSING[name](None, None, None)
    half, whole = seen(torch.float16), seen(torch.float32)
    assert torch.equal(method.choose(half), method.choose(whole))
    if isinstance(method, Scorer):
        score = method.score(half)
        assert score.dtype in (torch.float32, torch.float64)
        assert score.isfinite().all()
        torch.testing.assert_close(score, method.score(whole), rtol=1e-5, atol=1e-6)
