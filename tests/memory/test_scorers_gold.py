"""Scores and kept tokens are those of kvpress on the same queries, keys and values; SnapKV's are EMLoC's."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import steer
from steer.memory import Scorer, Seen

from .test_golden_gold import DIM, GOLD, HEADS, KV_HEADS, LAYERS, SINKS, TOKENS, WINDOW, gold, rope

SNAP = {"window": WINDOW, "kernel_size": 5, "sinks": 0}
ADA = {
    "ada_snapkv": {"scorer": "snapkv", "options": {"window": WINDOW}, "sinks": 0},
    "ada_knorm": {"scorer": "knorm", "sinks": 0},
    "ada_expected_attention": {"scorer": "expected_attention", "safeguard": 0.5, "sinks": SINKS},
}
PRESSES = {
    "snapkv": SNAP,
    "pyramidkv": SNAP,
    "tova": {"sinks": 0},
    "observed_attention": {"sinks": 0},
    "knorm": {"sinks": 0},
    "keydiff": {"sinks": 0},
    "streaming_llm": {"sinks": SINKS},
    "expected_attention": {"sinks": SINKS},
    "expected_attention_mean": {"sinks": SINKS, "covariance": False, "value_norm": False},
    **ADA,
}


def method(press: str) -> Scorer:
    name = "ada_kv" if press in ADA else press.removesuffix("_mean")
    return steer.create(name, **PRESSES[press])


def seen(layer: int, turned: bool = False) -> Seen:
    """What a scorer is shown of a layer of kvpress' model; `turned`: queries at the mean of the positions to come."""
    tensors = gold("states")[0]
    query, key, value = (tensors[f"{name}.{layer}"] for name in "qkv")
    if turned:
        future = torch.arange(TOKENS, TOKENS + int(gold("states")[1]["future"]))
        before = tensors[f"q_before_rope.{layer}"].double()
        query = torch.einsum("ij,bhtj->bhti", rope(future).mean(0), before).float()
    slots, every = torch.arange(TOKENS), torch.ones(1, KV_HEADS, TOKENS, dtype=torch.bool)
    return Seen(
        query,
        key,
        value,
        DIM**-0.5,
        slots[None, None],
        every,
        every,
        slots,
        torch.ones(1, TOKENS, dtype=torch.bool),
        layer=layer,
        place=layer,
        layers=LAYERS,
    )


def protected(press: str) -> torch.Tensor:
    """The columns to which kvpress gives a score above all others, bool (T,)."""
    place = torch.arange(TOKENS)
    if "snapkv" in press or press == "pyramidkv":
        return place >= TOKENS - WINDOW
    if "expected" in press:
        return place < SINKS
    return place == TOKENS - 1 if press == "tova" else torch.zeros(TOKENS, dtype=torch.bool)


@pytest.mark.parametrize("press", [name for name in PRESSES if name != "streaming_llm"])
def test_scores_are_kvpress(press):
    for layer in range(LAYERS):
        found = method(press).score(seen(layer, "expected" in press))
        true = gold(press)[0][f"scores.{layer}"]
        free = ~protected(press)
        torch.testing.assert_close(found[..., free], true[..., free], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("press", PRESSES)
def test_kept_tokens_are_kvpress(press):
    for layer in range(LAYERS):
        found = method(press).choose(seen(layer, "expected" in press))
        tensors = gold(press)[0]
        if press in ADA:
            true = tensors[f"keep.{layer}"]
        else:
            kept = tensors[f"kept.{layer}"].long()
            true = torch.zeros(1, KV_HEADS, TOKENS, dtype=torch.bool).scatter(-1, kept, True)
        assert torch.equal(found, true), (press, layer)


def test_budgets_of_the_pyramid_are_kvpress():
    rows = json.loads((GOLD / "pyramidkv_budgets.json").read_text())
    assert len(rows) > 20
    for row in rows:
        pyramid = steer.create("pyramidkv", keep=1 - row["ratio"], window=row["window"], beta=row["beta"])
        for layer, kept in enumerate(row["kept"]):
            shown = _empty(row["tokens"], layer, len(row["kept"]))
            assert pyramid.count(shown).tolist() == [kept], (row, layer)


def _empty(tokens: int, layer: int, layers: int) -> Seen:
    x, slots = torch.zeros(1, 1, tokens, 1), torch.arange(tokens)
    every = torch.ones(1, 1, tokens, dtype=torch.bool)
    rows = torch.ones(1, tokens, dtype=torch.bool)
    return Seen(x, x, x, 1.0, slots[None, None], every, every, slots, rows, layer, layer, layers)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_snapkv_is_emloc_of_a_window_that_ends_the_context(window):
    """EMLoC sums the attention of its W observing rows and of a group's G heads, and pools with a kernel of 5."""
    groups = HEADS // KV_HEADS
    for layer in range(LAYERS):
        shown = seen(layer)
        q, k = shown.query.double(), shown.key.double().repeat_interleave(groups, dim=1)
        total = torch.zeros(KV_HEADS, TOKENS - window, dtype=torch.float64)
        for row in range(TOKENS - window, TOKENS):
            for head in range(HEADS):
                weights = (q[0, head, row] @ k[0, head, : row + 1].T / DIM**0.5).softmax(-1)
                total[head // groups] += weights[: TOKENS - window]
        emloc = F.avg_pool1d(total[None], 5, stride=1, padding=2)
        found = steer.create("snapkv", window=window, kernel_size=5).score(shown)[..., : TOKENS - window]
        torch.testing.assert_close(found.double(), emloc / (window * groups), rtol=1e-5, atol=1e-7)
