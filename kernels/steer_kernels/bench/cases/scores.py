"""Rows for `token_scores` (q (1, H, W, d), k (1, H_kv, S, d)) and `js_select` (scores (H_kv, S))."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from .. import eager
from ..rivals import kvpress_scores
from ..task import Task, normal, size_of

BF16, FP32 = torch.bfloat16, torch.float32
LENGTHS = {"quick": [96], "cpu": [4096, 32_768], "cuda": [4096, 32_768, 131_072]}
LARGE = {"quick": 96, "cpu": 32_768, "cuda": 32_768}
# (H, H_kv, W, d): of a model of 8 billion parameters, and of one whose queries and keys are wider than its values
GROUPED = {"quick": (4, 2, 8, 32), "cpu": (32, 8, 64, 128), "cuda": (32, 8, 64, 128)}
WIDE = {"quick": (2, 2, 8, 48), "cpu": (16, 16, 64, 192), "cuda": (16, 16, 64, 192)}
BUDGET = 0.02


def tasks(scale: str) -> Iterator[Task]:
    """Scores at every length, selection by count at every length and by budget at the large one."""
    large = LARGE[scale]
    for length in LENGTHS[scale]:
        yield _scores("grouped", *GROUPED[scale], length, BF16, scale, length == large)
    for length in LENGTHS[scale] if scale == "cpu" else [large]:
        yield _scores("grouped", *GROUPED[scale], length, FP32, scale, length == large)
    yield _scores("192 wide", *WIDE[scale], LENGTHS[scale][0] if scale == "cpu" else large, BF16, scale, False)
    for length in LENGTHS[scale]:
        yield _select("count", length)
    yield _select("budget", large)


def _scores(
    form: str, heads: int, kv: int, window: int, d: int, length: int, dtype: torch.dtype, scale: str, large: bool
) -> Task:
    scaling = d**-0.5

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        slots = torch.arange(length, device=generator.device)
        query = normal(generator, 1, heads, window, d, dtype=dtype)
        return query, normal(generator, 1, kv, length, d, dtype=dtype), slots[-window:], slots

    return Task(
        "token_scores",
        form,
        {"H": heads, "H_kv": kv, "W": window, "d": d, "S": length},
        dtype,
        make,
        lambda f, q, k, at, slots: f(q, k, scaling, query_slots=at, key_slots=slots, reduce="mean"),
        lambda q, k, at, slots: eager.token_scores(q, k, scaling, at, slots),
        (heads * window + kv * length) * d * size_of(dtype) + 4 * kv * length,
        reads=True,
        large=large,
        fresh=large,
        early=form == "grouped" and dtype is (BF16 if scale == "cuda" else FP32),
        compiled=large and dtype is BF16,
        rivals={"kvpress": kvpress_scores(window)},
    )


def _select(form: str, length: int) -> Task:
    kv = 8
    count = max(1, length // 4)

    def make(generator: torch.Generator) -> tuple[Any, ...]:
        # Distinct scores: between equal ones the plain formula does not say which.
        order = torch.stack([torch.randperm(length, generator=generator, device=generator.device) for _ in range(kv)])
        return ((order + 1) / length,)

    if form == "count":
        return Task(
            "js_select",
            form,
            {"H_kv": kv, "S": length, "keep": count},
            FP32,
            make,
            lambda f, scores: f(scores, count=count),
            lambda scores: eager.select_count(scores, count),
            5 * kv * length,
            tolerance=0.0,
        )
    mass = mass_of(BUDGET)
    return Task(
        "js_select",
        form,
        {"H_kv": kv, "S": length},
        FP32,
        make,
        lambda f, scores: f(scores, BUDGET),
        lambda scores: eager.select_budget(scores, mass),
        5 * kv * length,
        # The last token that fits may go either way by rounding: one a row.
        tolerance=1.5 / length,
    )


def mass_of(budget: float) -> float:
    """The mass whose removal, with renormalising, moves a distribution by a JS of `budget`; by bisection."""

    def divergence(mass: float) -> float:
        kept = 1 - mass
        return 0.5 * (mass * math.log(2) + kept * math.log(2 * kept / (2 - mass)) + math.log(2 / (2 - mass)))

    low, high = 0.0, 1.0 - 1e-12
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) <= budget else (low, middle)
    return low
