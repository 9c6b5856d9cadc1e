"""The gradients of `jsd` in Triton: one pass over both matrices, from the five numbers a row that the forward kept.

    of p    g beta p (log(p/m) - sum p log(p/m)) / temperature           at beta = 0: g p (D - sum p D)
    of q    g (1-beta) q (log(q/m) - sum q log(q/m)) / temperature       at beta = 0: g (q - p - p sum (q - p))

The sums are the forward's, from the same ratios: an error of the normalisers, the same at every token, cancels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ..jsd import gradients as in_torch
from ._jsd_plan import packed, weights
from ._jsd_terms import _MIXED, load, log_ratio, lost, pair, places
from ._op import INTERPRETED, block, on_its_device, runs

LN2 = math.log(2.0)


@triton.jit
def _store(row, step, start, offsets, size, value):
    at = row + tl.cast(start, tl.int64) * step + offsets.to(tl.int64) * step
    tl.store(at, value.to(row.dtype.element_ty), mask=start + offsets < size)


@triton.jit
def _gradients(
    grad, first, second, labels, stats, into_a, into_b, rows, size, grad_step, row_a, row_b, step_a, step_b,
    label_step, ignored, scale, factor, beta, slices,
    LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr, MODE: tl.constexpr, LABELS: tl.constexpr,
    WANT_A: tl.constexpr, WANT_B: tl.constexpr,
):  # fmt: skip
    row, start = (tl.program_id(0) // slices).to(tl.int64), tl.program_id(0) % slices * (LANES * EACH)
    offsets = places(LANES, EACH, PACKED)
    if LABELS and tl.load(labels + row * label_step) == ignored:
        nothing = tl.zeros((LANES, EACH), tl.float32)
        if WANT_A:
            _store(into_a + row * size, 1, start, offsets, size, nothing)
        if WANT_B:
            _store(into_b + row * size, 1, start, offsets, size, nothing)
        return
    lse_a, lse_b, gap = tl.load(stats + row), tl.load(stats + rows + row), tl.load(stats + 2 * rows + row)
    of_p, of_q = tl.load(stats + 3 * rows + row), tl.load(stats + 4 * rows + row)
    # NaN marks a row that has no result. An infinite sum is KL's, whose first row then has no gradient.
    slope = tl.where(of_p == of_p, tl.load(grad + row * grad_step).to(tl.float32) * factor, float("nan"))
    of_p = tl.where(of_p < float("inf"), of_p, float("nan"))
    a = load(first + row * row_a, step_a, start, offsets, size, True)
    b = load(second + row * row_b, step_b, start, offsets, size, True)
    big, u, size_d, d = pair(a, b, scale, lse_a, lse_b, gap)
    first_leads, small = d >= 0, big * u
    p = tl.where(first_leads, big, small)
    if MODE > _MIXED:
        if WANT_A:
            change = p * (tl.where(first_leads, size_d, -size_d) - of_p) * slope
            _store(into_a + row * size, 1, start, offsets, size, change)
        if WANT_B:
            # All of it adds up to 0, but for the error of the normalisers. In nats as it is; the slope is for bits.
            change = (tl.where(first_leads, -big, big) * lost(u, size_d) - p * of_q) * (slope * 1.4426950408889634)
            _store(into_b + row * size, 1, start, offsets, size, change)
    else:
        lead = log_ratio(u, size_d, d, beta, MODE)
        if WANT_A:
            change = p * (tl.where(first_leads, lead, lead - size_d) - of_p) * (slope * beta)
            _store(into_a + row * size, 1, start, offsets, size, change)
        if WANT_B:
            q = tl.where(first_leads, small, big)
            change = q * (tl.where(first_leads, lead - size_d, lead) - of_q) * (slope * (1.0 - beta))
            _store(into_b + row * size, 1, start, offsets, size, change)


def _settings(size: int, element: int) -> tuple[int, int, int]:
    """Lanes, columns a lane and warps: 16 pairs a thread."""
    each = 16 // element
    if INTERPRETED or size < 4 * 32 * 16:
        lanes = block(-(-size // each), 1 if INTERPRETED else 128)
        return (min(lanes, 64) if INTERPRETED else lanes), each, 4
    return 4 * 32 * 16 // each, each, 4


@on_its_device
def launch(
    grad: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    stats: torch.Tensor,
    beta: float,
    temperature: float,
    labels: torch.Tensor | None,
    ignore_index: int,
    want_first: bool,
    want_second: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of both matrices, contiguous; empty where one is not wanted."""
    if beta == 1:
        changed = launch(grad, second, first, stats, 0.0, temperature, labels, ignore_index, want_second, want_first)
        return changed[1], changed[0]
    into = [
        torch.empty(x.shape if wanted else (0,), dtype=x.dtype, device=x.device)
        for x, wanted in ((first, want_first), (second, want_second))
    ]
    rows, size = first.shape
    if not rows or not (want_first or want_second):
        return into[0], into[1]
    lanes, each, warps = _settings(size, max(first.element_size(), second.element_size()))
    slices = -(-size // (lanes * each))
    _gradients[(rows * slices,)](
        grad, first, second, grad if labels is None else labels, stats, into[0], into[1], rows, size, grad.stride(0),
        first.stride(0), second.stride(0), first.stride(1), second.stride(1),
        0 if labels is None else labels.stride(0), ignore_index, 1 / (LN2 * temperature), LN2 / temperature, beta,
        slices, LANES=lanes, EACH=each, PACKED=packed(first, second, each), MODE=weights(beta).mode,
        LABELS=labels is not None, WANT_A=want_first, WANT_B=want_second, num_warps=warps,
    )  # fmt: skip
    return into[0], into[1]


@torch.library.custom_op(
    "steer::jsd_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor first, Tensor second, Tensor stats, float beta, float temperature, Tensor? labels,"
    " int ignore_index, bool want_first, bool want_second) -> (Tensor, Tensor)",
)
def gradients(grad, first, second, stats, beta, temperature, labels, ignore_index, want_first, want_second):  # type: ignore[no-untyped-def]
    if runs(first, second):
        return launch(grad, first, second, stats, beta, temperature, labels, ignore_index, want_first, want_second)
    found = in_torch(grad, first, second, beta, temperature, labels, ignore_index, want_first, want_second)
    return tuple(x.new_empty(0) if y is None else y.contiguous() for x, y in zip((first, second), found, strict=True))


@gradients.register_fake
def _(grad, first, second, stats, beta, temperature, labels, ignore_index, want_first, want_second):  # type: ignore[no-untyped-def]
    return tuple(
        torch.empty(x.shape if wanted else (0,), dtype=x.dtype, device=x.device)
        for x, wanted in ((first, want_first), (second, want_second))
    )
