"""The gold of kvpress agrees with itself: scores follow from its own q, k, v in fp64, kept keys from its scores."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from safetensors import safe_open

from steer_kernels import token_scores

GOLD = Path(__file__).parents[1] / "golden" / "kvpress"
LAYERS, HEADS, KV_HEADS, DIM, TOKENS, KEPT = 4, 8, 2, 16, 64, 32
WINDOW, KERNEL, SINKS = 8, 5, 4


@functools.cache
def gold(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(GOLD / f"{name}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def states(layer: int, *names: str) -> list[torch.Tensor]:
    """The layer's states in fp64, keys and values repeated for query heads where the name ends in *."""
    tensors = [gold("states")[0][f"{name.rstrip('*')}.{layer}"].double() for name in names]
    wide = "b h t d -> b (h g) t d"
    return [
        repeat(x, wide, g=HEADS // KV_HEADS) if name.endswith("*") else x
        for x, name in zip(tensors, names, strict=True)
    ]


def attention(layer: int) -> torch.Tensor:
    q, k = states(layer, "q", "k*")
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(DIM)
    return scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -math.inf).softmax(-1)


def groups(x: torch.Tensor) -> torch.Tensor:
    return reduce(x, "b (h g) s -> b h s", "mean", h=KV_HEADS)


def rope(positions: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (n, d, d) of the halves-rotated RoPE at these positions."""
    theta = json.loads(gold("states")[1]["config"])["rope_parameters"]["rope_theta"]
    half = DIM // 2
    angle = positions.double()[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = torch.diag_embed(angle.cos()), torch.diag_embed(angle.sin())
    return torch.cat([torch.cat([cos, -sin], 2), torch.cat([sin, cos], 2)], 1)


def snapkv(layer: int) -> torch.Tensor:
    seen = attention(layer)[:, :, -WINDOW:, :-WINDOW].mean(2)
    padded = F.pad(seen, (KERNEL // 2, KERNEL // 2))
    pooled = groups(padded.unfold(-1, KERNEL, 1).sum(-1) / KERNEL)
    return F.pad(pooled, (0, WINDOW), value=pooled.max().item() + 1)


def tova(layer: int) -> torch.Tensor:
    seen = attention(layer)[:, :, -1, :-1].mean(1, keepdim=True).expand(-1, KV_HEADS, -1)
    return F.pad(seen, (0, 1), value=seen.max().item() + 1)


def observed_attention(layer: int) -> torch.Tensor:
    return groups(attention(layer).sum(2)) / (TOKENS - torch.arange(TOKENS))


def knorm(layer: int) -> torch.Tensor:
    (k,) = states(layer, "k")
    return -k.pow(2).sum(-1).sqrt()


def keydiff(layer: int) -> torch.Tensor:
    (k,) = states(layer, "k")
    unit = k / k.norm(dim=-1, keepdim=True)
    anchor = unit.mean(2, keepdim=True)
    return -(unit * anchor).sum(-1) / anchor.norm(dim=-1)


def streaming_llm(layer: int) -> torch.Tensor:
    place = torch.arange(TOKENS)
    return ((place < SINKS) | (place >= TOKENS - (KEPT - SINKS))).double().expand(1, KV_HEADS, TOKENS)


def expected_attention(layer: int, whole: bool = True) -> torch.Tensor:
    q, k, v = (x[:, :, SINKS:] for x in states(layer, "q_before_rope", "k*", "v"))
    turn = rope(torch.arange(TOKENS, TOKENS + int(gold("states")[1]["future"]))).mean(0)
    mean = q.mean(2)
    score = torch.einsum("ij,bhj,bhsi->bhs", turn, mean, k) / math.sqrt(DIM)
    if whole:
        off = torch.einsum("ij,bhtj->bhti", turn, q - mean[:, :, None])
        score = score + torch.einsum("bhti,bhsi->bhts", off, k).pow(2).mean(2) / (2 * DIM)
    found = groups(score.softmax(-1)) * (v.norm(dim=-1) if whole else 1)
    return F.pad(found, (SINKS, 0), value=found.max().item() + 1)


SCORES = {
    "snapkv": snapkv,
    "tova": tova,
    "observed_attention": observed_attention,
    "knorm": knorm,
    "keydiff": keydiff,
    "streaming_llm": streaming_llm,
    "expected_attention": expected_attention,
    "expected_attention_mean": functools.partial(expected_attention, whole=False),
    "pyramidkv": snapkv,
    "ada_snapkv": snapkv,
    "ada_knorm": knorm,
    "ada_expected_attention": expected_attention,
}
PLAIN = [name for name in SCORES if not name.startswith("ada_")]
ADA = {"ada_snapkv": 0.2, "ada_knorm": 0.2, "ada_expected_attention": 0.5}


def test_everything_has_a_formula_and_is_small():
    files = list(GOLD.iterdir())
    assert {file.stem for file in files if file.suffix == ".safetensors"} == {*SCORES, "states"}
    assert sum(file.stat().st_size for file in files) < 1_500_000


def test_queries_are_the_rotated_ones():
    for layer in range(LAYERS):
        before, after = states(layer, "q_before_rope", "q")
        turned = torch.einsum("tij,bhtj->bhti", rope(torch.arange(TOKENS)), before)
        assert torch.allclose(turned, after, atol=5e-5)


def test_attention_is_far_from_uniform():
    for layer in range(LAYERS):
        last = attention(layer)[0, :, -1]
        assert last.max() > 0.2
        # Perplexity of the last query's attention, of 64 keys.
        assert (-(last * last.log()).sum(-1)).exp().mean() < 32


@pytest.mark.parametrize("name", SCORES)
def test_scores_follow_from_the_states(name):
    for layer in range(LAYERS):
        found, true = gold(name)[0][f"scores.{layer}"], SCORES[name](layer)
        assert found.shape == (1, KV_HEADS, TOKENS)
        assert torch.allclose(found.double(), true, atol=1e-4 if name == "keydiff" else 2e-5, rtol=2e-5)


def test_the_kernel_gives_their_attention():
    causal = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    for layer in range(LAYERS):
        q, k = (gold("states")[0][f"{name}.{layer}"] for name in "qk")
        total = token_scores(q, k, DIM**-0.5, causal) / (HEADS // KV_HEADS)
        theirs = gold("observed_attention")[0][f"scores.{layer}"]
        assert torch.allclose(total / (TOKENS - torch.arange(TOKENS)), theirs, atol=1e-6)
        window = token_scores(q[:, :, -WINDOW:], k, DIM**-0.5, causal[:, :, -WINDOW:], reduce="mean")[..., :-WINDOW]
        pooled = F.avg_pool1d(window, KERNEL, stride=1, padding=KERNEL // 2)
        assert torch.allclose(pooled, gold("snapkv")[0][f"scores.{layer}"][..., :-WINDOW], atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_the_kept_are_the_best(name):
    for layer in range(LAYERS):
        scores, kept = gold(name)[0][f"scores.{layer}"], gold(name)[0][f"kept.{layer}"].long()
        keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, kept, True)
        assert (keep.sum(-1) == kept.shape[-1]).all()
        assert (kept.diff(dim=-1) > 0).all()
        worst = scores.masked_fill(~keep, math.inf).amin(-1)
        assert (worst >= scores.masked_fill(keep, -math.inf).amax(-1)).all()
        assert kept.shape[-1] == (pyramid(TOKENS, 0.5, WINDOW, 20, LAYERS)[layer] if name == "pyramidkv" else KEPT)


@pytest.mark.parametrize("name, safeguard", ADA.items())
def test_heads_share_a_budget(name, safeguard):
    counts = []
    for layer in range(LAYERS):
        scores, keep = gold(name)[0][f"scores.{layer}"][0], gold(name)[0][f"keep.{layer}"][0]
        raised = scores.clone().scatter(-1, scores.topk(int(KEPT * safeguard), -1).indices, math.inf)
        best = rearrange(raised, "h t -> (h t)").topk(KV_HEADS * KEPT).indices
        want = torch.zeros(KV_HEADS * TOKENS, dtype=torch.bool)
        want[best] = True
        assert torch.equal(rearrange(want, "(h t) -> h t", h=KV_HEADS), keep)
        counts += keep.sum(-1).tolist()
    assert set(counts) != {KEPT}, "no head has a budget of its own: the gold shows nothing"


def pyramid(tokens: int, ratio: float, window: int, beta: int, layers: int) -> list[int]:
    mean = tokens * (1 - ratio)
    low = mean / beta
    high = 2 * mean - low
    if high >= tokens - window:
        high = tokens - window
        low = 2 * mean - high
    if not tokens >= high >= low >= window:
        return [max(1, round(mean))] * layers
    return [round(high - layer * (high - low) / (layers - 1)) for layer in range(layers)]


def test_budgets_of_the_pyramid():
    rows = json.loads((GOLD / "pyramidkv_budgets.json").read_text())
    for row in rows:
        kept = row.pop("kept")
        assert kept == pyramid(**row, layers=len(kept)), row
    assert len(rows) > 20
