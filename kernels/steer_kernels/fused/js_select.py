"""`steer_kernels.js_select` in Triton: one program a row, and no sort.

Scores become integers in their order. The integer at the edge between dropped and kept is built from its highest bit
to its lowest: a bit stays set where what is measured below it (tokens, or mass in fp64) still fits. Then one pass in
the tokens' order keeps what is above the edge, and as many of those at the edge as there is room for. A row of up to
16,384 tokens stays in registers; a longer one is read again in every pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..js_select import check, dropped_mass, halves
from ..js_select import js_select as public
from ._op import block, direct, on_its_device, runs

REFERENCE = public.reference  # type: ignore[attr-defined]
TOP = tl.constexpr(2147483647)
INFINITE = tl.constexpr(0x7F800000)
COUNT, MASS, TIED, BEST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def _loaded(scores, always, start, n, s2, a2, sinks, recent, HAS_ALWAYS: tl.constexpr, BLOCK: tl.constexpr):
    """A block's scores in fp32, -inf for NaN and where there is no token."""
    at = start + tl.arange(0, BLOCK)
    x = tl.load(scores + at * s2, mask=at < n, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))
    safe = (at < sinks) | (at >= n - recent)
    if HAS_ALWAYS:
        safe = safe | (tl.load(always + at * a2, mask=at < n, other=0) != 0)
    return x, safe & (at < n), at


@triton.jit
def _keyed(scores, always, start, n, s2, a2, sinks, recent,
           HAS_ALWAYS: tl.constexpr, BUDGET: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """A block's integers; the least of all where there is no token. With a budget, infinite scores are protected."""
    x, safe, at = _loaded(scores, always, start, n, s2, a2, sinks, recent, HAS_ALWAYS, BLOCK)
    bits = x.to(tl.int32, bitcast=True)
    # minus zero is zero
    key = tl.where(bits == -TOP - 1, 0, tl.where(bits < 0, bits ^ TOP, bits))
    if BUDGET:
        safe = safe | (key == INFINITE)
    key = tl.where(safe, TOP, key)
    return tl.where(at < n, key, -TOP - 1)


@triton.jit
def _weighed(key):
    """The mass of each token, in fp64: its score is its own integer read as a float."""
    return tl.where((key > 0) & (key < INFINITE), key.to(tl.float32, bitcast=True), 0.0).to(tl.float64)


@triton.jit
def _looked(key, edge, WHAT: tl.constexpr):
    if WHAT == COUNT:
        found = (key >= edge).to(tl.int32)
    elif WHAT == MASS:
        found = tl.where(key < edge, _weighed(key), 0.0)
    elif WHAT == TIED:
        found = (key == edge).to(tl.int32)
    else:
        found = key
    return found


@triton.jit
def _measured(key, edge, scores, always, n, s2, a2, sinks, recent, WHAT: tl.constexpr,
              ONE: tl.constexpr, HAS_ALWAYS: tl.constexpr, BUDGET: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """How many tokens reach the edge, or the mass below it, or how many stand at it, or the largest of all."""
    found = _looked(key, edge, WHAT)
    if not ONE:
        for start in range(BLOCK, n, BLOCK):
            more = _looked(
                _keyed(scores, always, start, n, s2, a2, sinks, recent, HAS_ALWAYS, BUDGET, BLOCK), edge, WHAT
            )
            if WHAT == BEST:
                found = tl.maximum(found, more)
            else:
                found += more
    if WHAT == BEST:
        measured = tl.max(found, 0)
    else:
        measured = tl.sum(found, 0)
    return measured


@triton.jit
def select_kernel(
    scores, always, out,
    n1, n, count, rho, rest, sinks, recent, s0, s1, s2, a0, a1, a2,
    BUDGET: tl.constexpr, HAS_ALWAYS: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row // n1 * s0 + row % n1 * s1
    if HAS_ALWAYS:
        always += row // n1 * a0 + row % n1 * a1
    # the first block stays, whether or not it is the only one
    key = _keyed(scores, always, 0, n, s2, a2, sinks, recent, HAS_ALWAYS, BUDGET, BLOCK)
    one = tl.full((), 1, tl.int64)
    if BUDGET:
        x, _, at = _loaded(scores, always, 0, n, s2, a2, 0, 0, False, BLOCK)
        whole = tl.where((x > 0) & (x < float("inf")), x, 0.0).to(tl.float64)
        if not ONE:
            for start in range(BLOCK, n, BLOCK):
                x, _, at = _loaded(scores, always, start, n, s2, a2, 0, 0, False, BLOCK)
                whole += tl.where((x > 0) & (x < float("inf")), x, 0.0).to(tl.float64)
        share = tl.full((), 0.0, tl.float64) + rho + rest
        limit = tl.where(share < 1.0, tl.sum(whole, 0) * share, float("inf"))
        # the first integer that cannot go altogether has mass, so that it is a positive score's
        edge = tl.full((), 0, tl.int64)
        for step in range(31):
            tried = edge + (one << (30 - step))
            below = _measured(
                key, tried.to(tl.int32), scores, always, n, s2, a2, sinks, recent,
                MASS, ONE, HAS_ALWAYS, BUDGET, BLOCK,
            )  # fmt: skip
            edge = tl.where(below <= limit, tried, edge)
        least = edge.to(tl.int32)
        safe = _measured(
            key, TOP, scores, always, n, s2, a2, sinks, recent, TIED, ONE, HAS_ALWAYS, BUDGET, BLOCK
        )  # fmt: skip
        best = _measured(
            key, TOP, scores, always, n, s2, a2, sinks, recent, BEST, ONE, HAS_ALWAYS, BUDGET, BLOCK
        )  # fmt: skip
        # all may go and nothing is protected: the first best one stays
        bare = (least == TOP) & (safe == 0)
        least = tl.where(bare, best, least)
        below = _measured(
            key, least, scores, always, n, s2, a2, sinks, recent, MASS, ONE, HAS_ALWAYS, BUDGET, BLOCK
        )  # fmt: skip
        tied = _measured(
            key, least, scores, always, n, s2, a2, sinks, recent, TIED, ONE, HAS_ALWAYS, BUDGET, BLOCK
        )  # fmt: skip
        inner = (least > 0) & (least < INFINITE) & (bare == 0)
        each = tl.where(inner, least, 0x3F800000).to(tl.float32, bitcast=True).to(tl.float64)
        spare = tl.where(inner, limit - below, 0.0)
        lost = tl.minimum(spare / each, tied.to(tl.float64)).to(tl.int32)
        # a quotient is rounded; what holds is the sum
        lost = tl.where(below + lost.to(tl.float64) * each > below + spare, lost - 1, lost)
        lost = tl.where(below + (lost + 1).to(tl.float64) * each <= below + spare, lost + 1, lost)
        room = tl.where(bare, 1, tied - tl.where(inner, lost, 0))
    else:
        edge = -one - TOP
        for step in range(32):
            tried = edge + (one << (31 - step))
            reached = _measured(
                key, tried.to(tl.int32), scores, always, n, s2, a2, sinks, recent,
                COUNT, ONE, HAS_ALWAYS, BUDGET, BLOCK,
            )  # fmt: skip
            edge = tl.where(reached >= count, tried, edge)
        least = edge.to(tl.int32)
        reached = _measured(
            key, least, scores, always, n, s2, a2, sinks, recent, COUNT, ONE, HAS_ALWAYS, BUDGET, BLOCK
        )  # fmt: skip
        tied = _measured(
            key, least, scores, always, n, s2, a2, sinks, recent, TIED, ONE, HAS_ALWAYS, BUDGET, BLOCK
        )  # fmt: skip
        room = count - (reached - tied)
    out += row * n
    stands = (key == least).to(tl.int32)
    kept = (key > least) | ((stands == 1) & (tl.cumsum(stands, 0) <= room)) | (key == TOP)
    at = tl.arange(0, BLOCK)
    tl.store(out + at, kept.to(tl.uint8), mask=at < n)
    if not ONE:
        passed = tl.sum(stands, 0)
        for start in range(BLOCK, n, BLOCK):
            key = _keyed(scores, always, start, n, s2, a2, sinks, recent, HAS_ALWAYS, BUDGET, BLOCK)
            stands = (key == least).to(tl.int32)
            kept = (key > least) | ((stands == 1) & (tl.cumsum(stands, 0) + passed <= room)) | (key == TOP)
            at = start + tl.arange(0, BLOCK)
            tl.store(out + at, kept.to(tl.uint8), mask=at < n)
            passed += tl.sum(stands, 0)


LONGEST = 16384
# Rows that one program's passes take longer over than the many that sort them: on an H100 twice as long at 131,072.
SORTED = 65536


def _settings(n: int) -> dict[str, int | bool]:
    """At most 32 integers a thread."""
    size = min(block(n, 16), LONGEST if n <= LONGEST else LONGEST // 2)
    return {"ONE": n <= size, "BLOCK": size, "num_warps": 4 if size <= 1024 else 8 if size <= 4096 else 16}


@on_its_device
def launch(
    scores: torch.Tensor,
    budget: float | None,
    count: int | None,
    always: torch.Tensor | None,
    sinks: int,
    recent: int,
) -> torch.Tensor:
    """One launch, or the reference where Triton does not apply, or where a whole sort is faster."""
    if not runs(scores) or (count is not None and scores.is_cuda and scores.shape[-1] > SORTED):
        return REFERENCE(scores, budget, count=count, always=always, sinks=sinks, recent=recent)  # type: ignore[no-any-return]
    always = check(scores, budget, count, always, sinks, recent)
    scores, n = scores.detach(), scores.shape[-1]
    out = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    if not out.numel() or (count is not None and count >= n):
        return out.fill_(True)
    rows, marked = _three(scores), None if always is None else _three(always)
    rho, rest = (0.0, 0.0) if budget is None else halves(dropped_mass(budget))
    select_kernel[(rows.shape[0] * rows.shape[1],)](
        rows, None if marked is None else marked.view(torch.uint8), out.view(torch.uint8),
        rows.shape[1], n, count or 0, rho, rest, min(sinks, n), min(recent, n), *rows.stride(),
        *((0, 0, 0) if marked is None else marked.stride()),
        BUDGET=budget is not None, HAS_ALWAYS=marked is not None, **_settings(n),
    )  # fmt: skip
    return out


def _three(x: torch.Tensor) -> torch.Tensor:
    """As (N0, N1, n): a view for up to three dimensions."""
    while x.ndim < 3:
        x = x[None]
    return x.flatten(0, x.ndim - 3)


@torch.library.custom_op(
    "steer::js_select",
    mutates_args=(),
    schema="(Tensor scores, float? budget, int? count, Tensor? always, int sinks, int recent) -> Tensor",
)
def operator(scores, budget, count, always, sinks, recent):  # type: ignore[no-untyped-def]
    return launch(scores, budget, count, always, sinks, recent).contiguous()


@operator.register_fake
def _(scores, budget, count, always, sinks, recent):  # type: ignore[no-untyped-def]
    return scores.new_empty(scores.shape, dtype=torch.bool)


def js_select(
    scores: torch.Tensor,
    budget: float | None = None,
    *,
    count: int | None = None,
    always: torch.Tensor | None = None,
    sinks: int = 0,
    recent: int = 0,
) -> torch.Tensor:
    """`steer_kernels.js_select`."""
    scores = scores.detach()
    call = launch if direct(scores) else operator
    return call(scores, budget, count, always, sinks, recent)  # type: ignore[no-any-return]
