"""What the kernels of `jsd` share: one pair of logits, one slice of a row, one row.

Everything is in bits, because exp2 and log2 are what a GPU has. With x = log2 p, y = log2 q and D = x - y, the larger
of p and q is `big` = 2^max(x, y), the smaller is `big` u with u = 2^-|D|, and a term of the sum is `big` F(D):

    beta = 1/2       F = ((1+u) (1 - log2(1+u)) - u |D|) / 2                                    (HALF; / 2 at the end)
    0 < beta < 1     F = -W log2 W - v u |D|, v the weight of the smaller, W = 1 - v (1-u)      (MIXED)
    beta = 0         F = |D| - (1-u) / ln 2, or (1-u) / ln 2 - u |D| where q is the larger      (END)

F is of second order in D and what it is made of is of first or zeroth order, so near D = 0 it is a polynomial. It is
never negative, and an error of the normalisers, which is the same at every token, moves a sum only in second order.
D is taken from the raw logits, whose difference is exact where they are close.

At beta = 1/2 there are no logarithms: at the speed of memory, an H100 has time for about 40 instructions a pair in half
precision, and all polynomials here are Chebyshev's, in error below fp32's own rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._op import INTERPRETED

HALF, MIXED, END = 0, 1, 2
_HALF, _MIXED = tl.constexpr(HALF), tl.constexpr(MIXED)
# What |D| is held to: 2^-128 is nothing beside 1, and 0 * inf, a token that one row excludes, is kept out.
_CAP = tl.constexpr(128.0)
_LOG2E = tl.constexpr(1.4426950408889634)
_NOTHING = tl.constexpr(float("-inf"))
# Where a maximum starts: finite, so that a lane of excluded tokens needs no case of its own.
FLOOR = tl.constexpr(-1e38)
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def places(LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr):
    """(LANES, EACH) offsets: a lane's own are in one thread, so that its running maximum costs no exchange.

    Packed, they are neighbours and come in one load; where rows are not aligned for that, lanes are neighbours.
    """
    lane, own = tl.arange(0, LANES)[:, None], tl.arange(0, EACH)[None, :]
    return lane * EACH + own if PACKED else lane + own * LANES


@triton.jit
def load(row, step, start, offsets, size, MASKED: tl.constexpr):
    """A tile of a row from column `start`; what lies behind its end is excluded."""
    at = row + tl.cast(start, tl.int64) * step + offsets.to(tl.int64) * step
    if MASKED:
        return tl.load(at, mask=start + offsets < size, other=_NOTHING).to(tl.float32)
    return tl.load(at).to(tl.float32)


@triton.jit
def gather(x, top, total, scale):
    """Each lane's running maximum, in bits, and sum of 2^(scale x - maximum), with one more tile."""
    new = tl.maximum(top, tl.max(x, 1) * scale)
    return new, total * tl.exp2(top - new) + tl.sum(tl.exp2(tl.fma(x, scale, -new[:, None])), 1)


@triton.jit
def merge(top, total):
    """One (maximum, sum) of many."""
    high = tl.max(top, 0)
    return high, tl.sum(total * tl.exp2(top - high), 0)


@triton.jit
def scan(
    first, second, step_a, step_b, begin, end, scale,
    LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """(maximum, sum) in bits of columns begin to end of both rows."""
    offsets = places(LANES, EACH, PACKED)
    top_a = tl.full((LANES,), FLOOR, tl.float32)
    top_b = top_a
    sum_a = tl.zeros((LANES,), tl.float32)
    sum_b = sum_a
    full = begin + (end - begin) // (LANES * EACH) * (LANES * EACH)
    for start in range(begin, full, LANES * EACH):
        top_a, sum_a = gather(load(first, step_a, start, offsets, end, False), top_a, sum_a, scale)
        top_b, sum_b = gather(load(second, step_b, start, offsets, end, False), top_b, sum_b, scale)
    if full < end:
        top_a, sum_a = gather(load(first, step_a, full, offsets, end, True), top_a, sum_a, scale)
        top_b, sum_b = gather(load(second, step_b, full, offsets, end, True), top_b, sum_b, scale)
    high_a, total_a = merge(top_a, sum_a)
    high_b, total_b = merge(top_b, sum_b)
    return high_a, total_a, high_b, total_b


@triton.jit
def normalisers(high_a, total_a, high_b, total_b):
    """log2 of both sums of exponentials, and their difference, which is 0 where they are equal.

    The difference is not taken of the two, which are rounded where they are large.
    """
    gap = (high_a - high_b) + tl.log2(tl.div_rn(total_a, total_b))
    return high_a + tl.log2(total_a), high_b + tl.log2(total_b), gap


@triton.jit
def pair(a, b, scale, lse_a, lse_b, gap):
    """big, u, |D| (held to the cap) and D of pairs of logits."""
    x, y = tl.fma(a, scale, -lse_a), tl.fma(b, scale, -lse_b)
    d = tl.fma(a - b, scale, -gap)
    size = tl.abs(d)
    # Written so that NaN, a token that both rows exclude, ends at the cap, interpreted or compiled.
    size = tl.where(size < _CAP, size, _CAP)
    return tl.exp2(tl.maximum(x, y)), tl.exp2(-size), size, d


@triton.jit
def logarithm(x):
    """log2 of what is well below 1: the GPU's own instruction; Triton's is twenty instructions long."""
    if _INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def lost(u, size):
    """1 - u, to relative precision."""
    near = 0.05549071982 + size * (-0.009542275033 + size * 0.00115543997)
    return tl.where(size < 0.5, size * (0.6931471722 + size * (-0.2402256746 + size * near)), 1.0 - u)


@triton.jit
def mixed_ratio(u, size, d, beta):
    """The weight v of the smaller of p and q, W = m / big and -log2 W, to relative precision."""
    lead, v = tl.where(d >= 0, beta, 1.0 - beta), tl.where(d >= 0, 1.0 - beta, beta)
    less = v * lost(u, size)
    z = less / (2.0 - less)
    square = z * z
    series = 0.5774328505 + square * (0.403451944 + square * 0.4062308721)
    series = z * (2.885390093 + square * (0.9617917163 + square * series))
    left = lead + v * u
    return v, left, tl.where(less < 0.5, series, -logarithm(left))


@triton.jit
def log_ratio(u, size, d, beta, MODE: tl.constexpr):
    """log2(big / m) of pairs; |D| at the ends, where it is not asked."""
    if MODE == _HALF:
        square = size * size
        near = 0.5 * size - square * (0.0866433966 + square * (-0.001734433168 + square * 5.480506896e-5))
        far = 0.3454293366 + u * (-0.2380419836 + u * (0.1331469274 + u * (-0.04943336839 + u * 0.008665699308)))
        far = 0.9999999436 + u * (-1.442685851 + u * (0.7210957682 + u * (-0.4781764415 + u * far)))
        return tl.where(size < 0.5, near, far)
    if MODE == _MIXED:
        _, _, ratio = mixed_ratio(u, size, d, beta)
        return ratio
    return size


@triton.jit
def excess(u, size, d, ratio, beta, c2, c3, c4, c5, c6, c7, c8, MODE: tl.constexpr, SAVE: tl.constexpr):
    """F of pairs, with SAVE by way of their `log_ratio`; `c2` to `c8` are the polynomial in D of this beta (MIXED)."""
    if MODE == _HALF:
        far = -0.112897597 + u * (0.05378560901 + u * (-0.01923907184 + u * 0.003449612211))
        far = 1.000000072 + u * (-0.4427043249 + u * (-0.7211469242 + u * (0.2387526668 + u * far))) - u * size
        if SAVE:
            far = (1.0 + u) * ratio - u * size
        near = 0.1732867362 + size * (-0.06005284335 + size * (0.0103687224 - size * 0.001075928964))
        return tl.where(size < 0.5, size * size * near, far)
    t = tl.where(d >= 0, size, -size)
    if MODE == _MIXED:
        v, left, ratio = mixed_ratio(u, size, d, beta)
        far = left * ratio - v * u * size
        near = left * (t * t) * (c2 + t * (c3 + t * (c4 + t * (c5 + t * (c6 + t * (c7 + t * c8))))))
    else:
        far = tl.where(d >= 0, tl.abs(d) - (1.0 - u) * _LOG2E, (1.0 - u) * _LOG2E - u * size)
        near = 0.01387596001 - t * (0.001923620651 - t * (0.0002229420155 - t * 2.206017564e-5))
        near = tl.where(d >= 0, 1.0, u) * (t * t) * (0.3465735912 - t * (0.08007550239 - t * near))
    return tl.where(size < 0.5, near, far)


@triton.jit
def add(
    a, b, total, of_p, of_q, scale, lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8,
    MODE: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Each lane's sum of the terms with one more tile; with SAVE also sum p log2(p/m) and sum q log2(q/m).

    At the ends these are sum p D and sum (q - p), which is 0 but for the error of the normalisers.
    """
    big, u, size, d = pair(a, b, scale, lse_a, lse_b, gap)
    ratio = log_ratio(u, size, d, beta, MODE) if SAVE else size
    term = big * excess(u, size, d, ratio, beta, c2, c3, c4, c5, c6, c7, c8, MODE, SAVE)
    endless = d == float("inf")
    if MODE > _MIXED:
        # The second row excludes what the first allows: infinite, however little p is.
        term = tl.where(endless, d, term)
    total += tl.sum(term, 1)
    if SAVE:
        other = big * u
        if MODE > _MIXED:
            of_p += tl.sum(tl.where(endless, d, tl.where(d >= 0, big * tl.abs(d), -other * size)), 1)
            of_q += tl.sum(tl.where(d >= 0, -big, big) * lost(u, size), 1)
        else:
            of_p += tl.sum(tl.where(d >= 0, big * ratio, other * (ratio - size)), 1)
            of_q += tl.sum(tl.where(d >= 0, other * (ratio - size), big * ratio), 1)
    return total, of_p, of_q


@triton.jit
def sums(
    first, second, step_a, step_b, begin, end, scale, lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8,
    LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr, MODE: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """The sums of `add` over columns begin to end."""
    offsets = places(LANES, EACH, PACKED)
    total = tl.zeros((LANES,), tl.float32)
    of_p = total
    of_q = total
    full = begin + (end - begin) // (LANES * EACH) * (LANES * EACH)
    for start in range(begin, full, LANES * EACH):
        a = load(first, step_a, start, offsets, end, False)
        b = load(second, step_b, start, offsets, end, False)
        total, of_p, of_q = add(
            a, b, total, of_p, of_q, scale, lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8, MODE, SAVE
        )  # fmt: skip
    if full < end:
        a = load(first, step_a, full, offsets, end, True)
        b = load(second, step_b, full, offsets, end, True)
        total, of_p, of_q = add(
            a, b, total, of_p, of_q, scale, lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8, MODE, SAVE
        )  # fmt: skip
    return tl.sum(total, 0), tl.sum(of_p, 0), tl.sum(of_q, 0)


@triton.jit
def finish(
    out, stats, row, rows, total, of_p, of_q, lse_a, lse_b, gap, unit, bound, SAVE: tl.constexpr
):  # fmt: skip
    """Write a row's result, in nats, and what its backward needs."""
    # Not finite: a logit is NaN or +inf, or every token is excluded.
    sound = (tl.abs(lse_a) < float("inf")) & (tl.abs(lse_b) < float("inf"))
    value = total * unit
    value = tl.where(value > bound, bound, value)
    tl.store(out + row, tl.where(sound, value, float("nan")))
    if SAVE:
        tl.store(stats + row, lse_a)
        tl.store(stats + rows + row, lse_b)
        tl.store(stats + 2 * rows + row, gap)
        tl.store(stats + 3 * rows + row, tl.where(sound, of_p, float("nan")))
        tl.store(stats + 4 * rows + row, tl.where(sound, of_q, float("nan")))


@triton.jit
def skip(out, stats, row, rows, SAVE: tl.constexpr):
    """Write an ignored row's."""
    tl.store(out + row, 0.0)
    if SAVE:
        for i in range(5):
            tl.store(stats + i * rows + row, 0.0)
