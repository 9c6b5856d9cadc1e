"""Parts of the kernels of token_scores: which row sees which key, and the scores of a tile before any softmax."""

from __future__ import annotations

import triton
import triton.language as tl

NEVER: tl.constexpr = tl.constexpr(2**31 - 1)
NOTHING: tl.constexpr = tl.constexpr(-(2**31))


@triton.jit
def narrow(slots):
    """int64 slots as int32, in order, without the two labels that mean something else."""
    return tl.minimum(tl.maximum(slots, -(2**31 - 1)), 2**31 - 2).to(tl.int32)


@triton.jit
def key_labels(
    slots, real, at, keys, since, slot_step, real_step, HAS_SLOTS: tl.constexpr, HAS_REAL: tl.constexpr,
    HAS_SINCE: tl.constexpr,
):  # fmt: skip
    """One label a key: the least label of the queries that see it."""
    inside = at < keys
    label = tl.where(inside, 0, NEVER)
    if HAS_SLOTS:
        slot = tl.load(slots + at.to(tl.int64) * slot_step, mask=inside, other=0)
        label = tl.where(inside, narrow(slot), NEVER)
        if HAS_SINCE:
            label = tl.where(slot >= since, label, NEVER)
    if HAS_REAL:
        label = tl.where(tl.load(real + at.to(tl.int64) * real_step, mask=inside, other=0) != 0, label, NEVER)
    return label


@triton.jit
def query_labels(
    slots, rows, w, live, slot_step, row_step, HAS_SLOTS: tl.constexpr, HAS_ROWS: tl.constexpr
):  # fmt: skip
    label = tl.where(live, 0, NOTHING)
    if HAS_SLOTS:
        label = tl.where(live, narrow(tl.load(slots + w * slot_step, mask=live, other=0)), NOTHING)
    if HAS_ROWS:
        label = tl.where(tl.load(rows + w * row_step, mask=live, other=0) != 0, label, NOTHING)
    return label


@triton.jit
def scores(
    q, k, seen, mask, mask_w, mask_s, at, keys, live, floor, inverse, MASK: tl.constexpr, NEGATIVE: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Raw scores (rows, keys) and which count, from q (rows, d), k (d, keys) and each row's place in the mask."""
    if WIDEN:
        x = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision="tf32x3")
    else:
        x = tl.dot(q, k, out_dtype=tl.float32)
    if NEGATIVE:
        x = -x
    if MASK != "none":
        where = mask + mask_w[:, None] + at[None, :].to(tl.int64) * mask_s
        said = tl.load(where, mask=live[:, None] & (at < keys)[None, :], other=0)
        if MASK == "bool":
            seen = seen & (said != 0)
        else:
            said = said.to(tl.float32)
            seen = seen & (said > floor)
            x = x + said * inverse
    return x, seen


@triton.jit
def log2(z):
    """Infinite for a row whose sum is 0: it sees nothing, and gives nothing."""
    return tl.where(z == 0, float("inf"), tl.log2(tl.where(z == 0, 1.0, z)))
