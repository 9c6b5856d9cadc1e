"""`steer_kernels.token_scores` in Triton: every key is read twice, and the attention matrix is never written.

    x_rj = +-<q_r, k_j> + bias_rj / |scaling|,   c = |scaling| log2(e)
    m_r = max_j x_rj,   z_r = sum_j 2^(c (x_rj - m_r))                 `stats_kernel`, over a share of the keys each
    m, log2 z over all shares                                         `joined_kernel`, where there is more than one
    s_j = sum_r 2^(c (x_rj - m_r) - log2 z_r)                         `mass_kernel`, which owns a tile of keys

The W queries of a group's G heads are the rows r = w G + g of one KV head. m is kept apart from log2 z, and unscaled:
both kernels compute the same bits of x, so that x - m is exact where it matters however large the scores are. Who sees
what is one comparison of two int32 labels: a key's slot, or the largest number where nobody sees it, against a query's
slot, or the smallest where it does not count.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import triton
import triton.language as tl

from .._dtypes import HALF
from ..token_scores import checked
from ..token_scores import token_scores as public
from ._op import INTERPRETED, block, direct, on_its_device, programs, runs
from ._seen import key_labels, log2, query_labels, scores

REFERENCE = public.reference  # type: ignore[attr-defined]
SCHEMA = (
    "(Tensor query, Tensor key, float scaling, Tensor? mask, Tensor? rows, str reduce, Tensor? query_slots, "
    "Tensor? key_slots, Tensor? real, int? since) -> Tensor"
)
MAX_WIDTH = 256
# Up to so many queries, nearly all keys come before all of them, and a branch would keep loads from running ahead.
FEW = 1024


@triton.jit(do_not_specialize=["window", "keys", "since"])
def stats_kernel(
    query, key, mask, rows, query_slots, key_slots, real, high, low,
    kv_heads, groups, window, keys, each, since, c, inverse, floor,
    qb, qh, qw, qd, kb, kh, ks, kd, mb, mh, mw, ms, rb, rw, sb, sw, tb, th, ts, eb, eh, es,
    WIDTH: tl.constexpr, MASK: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_REAL: tl.constexpr,
    HAS_SINCE: tl.constexpr, NEGATIVE: tl.constexpr, WIDEN: tl.constexpr, LAST: tl.constexpr,
    SKIP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Maximum m and sum z of a block of rows over `each` keys; with LAST, over all keys, what `mass_kernel` reads."""
    batch, head = (tl.program_id(2) // kv_heads).to(tl.int64), (tl.program_id(2) % kv_heads).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < window * groups
    w, h = (row // groups).to(tl.int64), head * groups + row % groups
    d = tl.arange(0, BLOCK_D)
    wide = d < WIDTH
    seer = query_labels(query_slots + batch * sb, rows + batch * rb, w, live, sw, rw, HAS_SLOTS, HAS_ROWS)
    latest = tl.max(seer)
    from_q = query + batch * qb + (h * qh + w * qw)[:, None] + d[None, :] * qd
    q = tl.load(from_q, mask=live[:, None] & wide[None, :], other=0.0)
    from_k = key + batch * kb + head * kh + d[:, None] * kd
    mask_w = batch * mb + h * mh + w * mw
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    z = tl.zeros((BLOCK_M,), tl.float32)
    first = tl.program_id(1) * each
    for start in range(first, min(first + each, keys), BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        label = key_labels(
            key_slots + batch * tb + head * th, real + batch * eb + head * eh, at, keys, since, ts, es,
            HAS_SLOTS, HAS_REAL, HAS_SINCE,
        )  # fmt: skip
        useful = (tl.min(label) <= latest) if SKIP else True
        if useful:
            k = tl.load(from_k + at[None, :].to(tl.int64) * ks, mask=wide[:, None] & (at < keys)[None, :], other=0.0)
            seen = label[None, :] <= seer[:, None]
            x, seen = scores(
                q, k, seen, mask, mask_w, ms, at, keys, live, floor, inverse, MASK, NEGATIVE, WIDEN
            )  # fmt: skip
            x = tl.where(seen, x, float("-inf"))
            new = tl.maximum(m, tl.max(x, 1))
            safe = tl.where(new == float("-inf"), 0.0, new)
            z = z * tl.exp2((m - safe) * c) + tl.sum(tl.exp2((x - safe[:, None]) * c), 1)
            m = new
    if LAST:
        m = tl.where(m == float("-inf"), 0.0, m)
        z = log2(z)
    to = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (window * groups) + row
    tl.store(high + to, m, mask=live)
    tl.store(low + to, z, mask=live)


@triton.jit
def joined_kernel(
    highs, lows, high, low, total, shares, c, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """From (B H_kv, shares, rows) to (B H_kv, rows); where log2 z is infinite, the row does not count."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    share = tl.arange(0, BLOCK_P)
    base = tl.program_id(1).to(tl.int64)
    live = row < total
    both = (share < shares)[:, None] & live[None, :]
    at = (base * shares + share)[:, None] * total + row[None, :]
    m = tl.load(highs + at, mask=both, other=float("-inf"))
    z = tl.load(lows + at, mask=both, other=0.0)
    most = tl.max(m, 0)
    most = tl.where(most == float("-inf"), 0.0, most)
    whole = tl.sum(z * tl.exp2((m - most[None, :]) * c), 0)
    tl.store(high + base * total + row, most, mask=live)
    tl.store(low + base * total + row, log2(whole), mask=live)


@triton.jit(do_not_specialize=["window", "keys", "since"])
def mass_kernel(
    query, key, mask, rows, query_slots, key_slots, real, high, low, out,
    kv_heads, groups, window, keys, since, c, inverse, floor,
    qb, qh, qw, qd, kb, kh, ks, kd, mb, mh, mw, ms, rb, rw, sb, sw, tb, th, ts, eb, eh, es,
    WIDTH: tl.constexpr, MASK: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_SLOTS: tl.constexpr, HAS_REAL: tl.constexpr,
    HAS_SINCE: tl.constexpr, NEGATIVE: tl.constexpr, WIDEN: tl.constexpr, REDUCE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The scores of one tile of keys, over all rows."""
    batch, head = (tl.program_id(1) // kv_heads).to(tl.int64), (tl.program_id(1) % kv_heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    wide = d < WIDTH
    at = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    from_k = key + batch * kb + head * kh + d[:, None] * kd + at[None, :].to(tl.int64) * ks
    k = tl.load(from_k, mask=wide[:, None] & (at < keys)[None, :], other=0.0)
    label = key_labels(
        key_slots + batch * tb + head * th, real + batch * eb + head * eh, at, keys, since, ts, es,
        HAS_SLOTS, HAS_REAL, HAS_SINCE,
    )  # fmt: skip
    earliest = tl.min(label)
    total = window * groups
    stats = tl.program_id(1).to(tl.int64) * total
    sums = tl.full((BLOCK_M, BLOCK_N), float("-inf") if REDUCE == "max" else 0.0, tl.float32)
    spoilt = tl.zeros((BLOCK_N,), tl.int32)
    pairs = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, total, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        live = row < total
        w, h = (row // groups).to(tl.int64), head * groups + row % groups
        z = tl.load(low + stats + row, mask=live, other=float("inf"))
        counts = z != float("inf")
        pairs += tl.where(counts, 1.0, 0.0)
        seer = query_labels(query_slots + batch * sb, rows + batch * rb, w, counts, sw, rw, HAS_SLOTS, False)
        if earliest <= tl.max(seer):
            m = tl.load(high + stats + row, mask=live, other=0.0)
            from_q = query + batch * qb + (h * qh + w * qw)[:, None] + d[None, :] * qd
            q = tl.load(from_q, mask=live[:, None] & wide[None, :], other=0.0)
            mask_w = batch * mb + h * mh + w * mw
            seen = label[None, :] <= seer[:, None]
            x, seen = scores(
                q, k, seen, mask, mask_w, ms, at, keys, live, floor, inverse, MASK, NEGATIVE, WIDEN
            )  # fmt: skip
            power = tl.where(seen, (x - m[:, None]) * c - z[:, None], float("-inf"))
            if REDUCE == "max":
                sums = tl.maximum(sums, power)
                # A maximum drops NaN, which must not be lost; where one is, all of its row is NaN.
                bad = (z != z).to(tl.int32)
                if tl.max(bad) > 0:
                    spoilt = tl.maximum(spoilt, tl.max(tl.where(seen, bad[:, None], 0), 0))
            else:
                sums += tl.exp2(power)
    if REDUCE == "max":
        made = tl.where(spoilt > 0, float("nan"), tl.exp2(tl.max(sums, 0)))
    else:
        made = tl.sum(sums, 0)
        if REDUCE == "mean":
            made = made / tl.maximum(tl.sum(pairs), 1.0)
    tl.store(out + tl.program_id(1).to(tl.int64) * keys + at, made, mask=at < keys)


def _settings(rows: int, width: int, dtype: torch.dtype, masked: bool) -> dict[str, int]:
    """The same tile in both kernels, so that both compute the same bits; small enough to spill no register."""
    wide = block(width, 16)
    stages = 3 if wide <= 128 else 2
    if dtype not in HALF:  # three products in tf32 and what their operands lose: larger tiles spill registers
        tall, tile, warps, stages = min(block(rows, 16), 32 if wide <= 128 else 16), 64, 8, 2
    else:
        tall = min(block(rows, 16), 64)
        tile, warps = 64 if masked or tall == 64 else 128, 8 if masked else 4
    return {"BLOCK_M": tall, "BLOCK_N": tile, "BLOCK_D": wide, "num_warps": warps, "num_stages": stages}


def _shares(device: torch.device, others: int, keys: int, tile: int) -> int:
    """Into how many shares the keys are split, of four tiles at least where there is enough to do."""
    return max(1, min(256, programs(device, 4) // others, triton.cdiv(keys, 4 * tile)))


@on_its_device
def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None,
    rows: torch.Tensor | None,
    reduce: str,
    query_slots: torch.Tensor | None,
    key_slots: torch.Tensor | None,
    real: torch.Tensor | None,
    since: int | None,
) -> torch.Tensor:
    """Two launches, or three; the reference where Triton does not apply."""
    fits = runs(query, key) and query.shape[-1] <= MAX_WIDTH and scaling != 0 and math.isfinite(scaling)
    if not fits or (mask is not None and mask.dtype == torch.float64):
        return REFERENCE(
            query, key, scaling, mask, rows=rows, reduce=reduce,
            query_slots=query_slots, key_slots=key_slots, real=real, since=since,
        )  # fmt: skip
    groups = checked(query, key, mask, rows, reduce, query_slots, key_slots, real, since)
    batch, kv_heads, keys, width = key.shape
    window, total = query.shape[2], query.shape[2] * groups
    if not (batch and kv_heads and keys and total):
        return torch.zeros(batch, kv_heads, keys, dtype=torch.float32, device=query.device)
    made = torch.empty(batch, kv_heads, keys, dtype=torch.float32, device=query.device)
    same = query.dtype == key.dtype
    settings = _settings(total, width, query.dtype if same else torch.float32, mask is not None)
    blocks = triton.cdiv(total, settings["BLOCK_M"])
    shares = _shares(query.device, blocks * batch * kv_heads, keys, settings["BLOCK_N"])
    each = settings["BLOCK_N"] * triton.cdiv(triton.cdiv(keys, shares), settings["BLOCK_N"])
    shares = triton.cdiv(keys, each)
    full = (batch, query.shape[1], window, keys)
    held = (batch, kv_heads, keys)
    given = [
        None if t is None else t.expand(shape)
        for t, shape in ((mask, full), (rows, full[::2]), (query_slots, full[::2]), (key_slots, held), (real, held))
    ]
    tensors = [query if t is None else t.view(torch.uint8) if t.dtype == torch.bool else t for t in given]
    steps = [
        *query.stride(), *key.stride(),
        *(s for t, n in zip(given, (4, 2, 2, 3, 3), strict=True) for s in ((0,) * n if t is None else t.stride())),
    ]  # fmt: skip
    kind = "none" if mask is None else "bool" if mask.dtype == torch.bool else "added"
    floor = torch.finfo(mask.dtype).min / 2 if mask is not None and kind == "added" else 0.0
    numbers = (since or 0, abs(scaling) * math.log2(math.e), 1 / abs(scaling), floor)
    # The interpreter multiplies the bits of bf16 as if they were integers.
    flags = {
        "WIDTH": width, "MASK": kind, "HAS_ROWS": rows is not None, "HAS_SLOTS": key_slots is not None,
        "HAS_REAL": real is not None, "HAS_SINCE": since is not None, "NEGATIVE": scaling < 0,
        "WIDEN": INTERPRETED or not same or query.dtype not in HALF, **settings,
    }  # fmt: skip
    sizes = (kv_heads, groups, window, keys)
    high, low = (torch.empty(batch * kv_heads, shares, total, device=query.device) for _ in range(2))
    skip = key_slots is not None and window > FEW
    stats_kernel[blocks, shares, batch * kv_heads](
        query, key, *tensors, high, low, *sizes, each, *numbers, *steps, LAST=shares == 1, SKIP=skip, **flags
    )
    if shares > 1:
        highs, lows = high, low
        high, low = (torch.empty(batch * kv_heads, total, device=query.device) for _ in range(2))
        joined_kernel[triton.cdiv(total, 16), batch * kv_heads](
            highs, lows, high, low, total, shares, numbers[1], BLOCK_R=16, BLOCK_P=block(shares), num_warps=4
        )
    mass_kernel[triton.cdiv(keys, settings["BLOCK_N"]), batch * kv_heads](
        query, key, *tensors, high, low, made, *sizes, *numbers, *steps, REDUCE=reduce, **flags
    )
    return made


@torch.library.custom_op("steer::token_scores", mutates_args=(), schema=SCHEMA)
def operator(query, key, scaling, mask, rows, reduce, query_slots, key_slots, real, since):  # type: ignore[no-untyped-def]
    return launch(query, key, scaling, mask, rows, reduce, query_slots, key_slots, real, since)


@operator.register_fake
def _(query, key, scaling, mask, rows, reduce, query_slots, key_slots, real, since):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if torch.float64 in (query.dtype, key.dtype) else torch.float32
    return query.new_empty(key.shape[:3], dtype=dtype)


@torch.no_grad()
def token_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    *,
    rows: torch.Tensor | None = None,
    reduce: Literal["sum", "mean", "max"] = "sum",
    query_slots: torch.Tensor | None = None,
    key_slots: torch.Tensor | None = None,
    real: torch.Tensor | None = None,
    since: int | None = None,
) -> torch.Tensor:
    """`steer_kernels.token_scores`."""
    call = launch if direct(query, key, mask) else operator
    return call(query, key, scaling, mask, rows, reduce, query_slots, key_slots, real, since)
