"""`jsd` in Triton: each row's log-sum-exps, then its sum of terms; the formulas are in `_jsd_terms`.

Both sums need every logit and the second needs the first one's result, so a row is read twice. The second time it
should come from L2 or from registers, never from memory, and there are three ways to see to that:

    row     one program a row. Where enough rows are in flight to fill the machine and still fit L2 together.
    split   programs (row, slice) in two launches. Where there are few rows, or all of them fit L2.
    group   programs (row, slice) in one launch, which wait for their row's others between the passes and keep their
            slice (fp32) or read it from L2. Anything else; only compiled, since the interpreter runs programs in turn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from ..jsd import check
from ..jsd import jsd as _jsd
from ._jsd_plan import choose, machine, packed, settings, weights
from ._jsd_terms import FLOOR, add, finish, gather, load, merge, normalisers, places, scan, skip, sums
from ._op import block, direct, on_its_device, runs
from .jsd_backward import gradients

LN2 = math.log(2.0)


@triton.jit
def _rows(
    first, second, labels, out, stats, rows, size, row_a, row_b, step_a, step_b, label_step, ignored,
    scale, unit, bound, beta, c2, c3, c4, c5, c6, c7, c8,
    LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr, MODE: tl.constexpr, SAVE: tl.constexpr,
    LABELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if LABELS and tl.load(labels + row * label_step) == ignored:
        skip(out, stats, row, rows, SAVE)
        return
    first += row * row_a
    second += row * row_b
    high_a, total_a, high_b, total_b = scan(first, second, step_a, step_b, 0, size, scale, LANES, EACH, PACKED)
    lse_a, lse_b, gap = normalisers(high_a, total_a, high_b, total_b)
    total, of_p, of_q = sums(
        first, second, step_a, step_b, 0, size, scale, lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8,
        LANES, EACH, PACKED, MODE, SAVE,
    )  # fmt: skip
    finish(out, stats, row, rows, total, of_p, of_q, lse_a, lse_b, gap, unit, bound, SAVE)


@triton.jit
def _publish(parts, row, slices, slice, one, two, three, four):
    """Leave what a slice found where its row's others find it: parts (N, 4, slices)."""
    at = parts + row * 4 * slices + slice
    tl.store(at, one)
    tl.store(at + slices, two)
    tl.store(at + 2 * slices, three)
    tl.store(at + 3 * slices, four)


@triton.jit
def _collect(parts, row, slices, SLICES: tl.constexpr):
    """The normalisers of a row from all of its slices."""
    i = tl.arange(0, SLICES)
    at = parts + row * 4 * slices + i
    real = i < slices
    # From L2: this core's L1 may hold what was there before.
    top_a = tl.load(at, mask=real, other=FLOOR, cache_modifier=".cg")
    sum_a = tl.load(at + slices, mask=real, other=0.0, cache_modifier=".cg")
    top_b = tl.load(at + 2 * slices, mask=real, other=FLOOR, cache_modifier=".cg")
    sum_b = tl.load(at + 3 * slices, mask=real, other=0.0, cache_modifier=".cg")
    high_a, total_a = merge(top_a, sum_a)
    high_b, total_b = merge(top_b, sum_b)
    return normalisers(high_a, total_a, high_b, total_b)


@triton.jit
def _conclude(
    out, stats, found, done, row, rows, slices, slice, total, of_p, of_q, lse_a, lse_b, gap, unit, bound,
    SLICES: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Leave a slice's sums; the last slice of a row to come adds them, always in the same order, and writes the row."""
    at = found + row * 3 * slices
    tl.store(at + slice, total)
    if SAVE:
        tl.store(at + slices + slice, of_p)
        tl.store(at + 2 * slices + slice, of_q)
    tl.debug_barrier()
    if tl.atomic_add(done + row, 1, sem="acq_rel") == slices - 1:
        tl.debug_barrier()
        i = tl.arange(0, SLICES)
        real = i < slices
        total = tl.sum(tl.load(at + i, mask=real, other=0.0, cache_modifier=".cg"), 0)
        if SAVE:
            of_p = tl.sum(tl.load(at + slices + i, mask=real, other=0.0, cache_modifier=".cg"), 0)
            of_q = tl.sum(tl.load(at + 2 * slices + i, mask=real, other=0.0, cache_modifier=".cg"), 0)
        finish(out, stats, row, rows, total, of_p, of_q, lse_a, lse_b, gap, unit, bound, SAVE)


@triton.jit
def _split_scan(
    first, second, labels, parts, done, size, row_a, row_b, step_a, step_b, label_step, ignored, scale, slices, span,
    LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    row, slice = (tl.program_id(0) // slices).to(tl.int64), tl.program_id(0) % slices
    if slice == 0:
        tl.store(done + row, 0)
    if LABELS and tl.load(labels + row * label_step) == ignored:
        return
    begin = slice * span
    high_a, total_a, high_b, total_b = scan(
        first + row * row_a, second + row * row_b, step_a, step_b, begin, tl.minimum(begin + span, size), scale,
        LANES, EACH, PACKED,
    )  # fmt: skip
    _publish(parts, row, slices, slice, high_a, total_a, high_b, total_b)


@triton.jit
def _split_sums(
    first, second, labels, out, stats, parts, found, done, rows, size, row_a, row_b, step_a, step_b, label_step,
    ignored, scale, unit, bound, beta, c2, c3, c4, c5, c6, c7, c8, slices, span,
    LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr, MODE: tl.constexpr, SAVE: tl.constexpr,
    LABELS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    row, slice = (tl.program_id(0) // slices).to(tl.int64), tl.program_id(0) % slices
    if LABELS and tl.load(labels + row * label_step) == ignored:
        if slice == 0:
            skip(out, stats, row, rows, SAVE)
        return
    lse_a, lse_b, gap = _collect(parts, row, slices, SLICES)
    begin = slice * span
    total, of_p, of_q = sums(
        first + row * row_a, second + row * row_b, step_a, step_b, begin, tl.minimum(begin + span, size), scale,
        lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8, LANES, EACH, PACKED, MODE, SAVE,
    )  # fmt: skip
    _conclude(
        out, stats, found, done, row, rows, slices, slice, total, of_p, of_q, lse_a, lse_b, gap, unit, bound,
        SLICES, SAVE,
    )  # fmt: skip


@triton.jit
def _group(
    first, second, labels, out, stats, parts, found, counters, rows, size, row_a, row_b, step_a, step_b, label_step,
    ignored, scale, unit, bound, beta, c2, c3, c4, c5, c6, c7, c8, slices, span,
    LANES: tl.constexpr, EACH: tl.constexpr, PACKED: tl.constexpr, MODE: tl.constexpr, SAVE: tl.constexpr,
    LABELS: tl.constexpr, SLICES: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    # Programs take rows in the order in which they start, not by their number: whoever waits, waits for programs that
    # run already, or for one that will be started as soon as any other ends, and the oldest row waits for nobody.
    ticket = tl.atomic_add(counters + 2 * rows, 1, sem="relaxed")
    row, slice = (ticket // slices).to(tl.int64), ticket % slices
    if LABELS and tl.load(labels + row * label_step) == ignored:
        if slice == 0:
            skip(out, stats, row, rows, SAVE)
        return
    start = slice * span
    end = tl.minimum(start + span, size)
    zero = tl.zeros((LANES,), tl.float32)
    first += row * row_a
    second += row * row_b
    if HELD:
        offsets = places(LANES, EACH, PACKED)
        if start + LANES * EACH <= size:
            a = load(first, step_a, start, offsets, size, False)
            b = load(second, step_b, start, offsets, size, False)
        else:
            a = load(first, step_a, start, offsets, size, True)
            b = load(second, step_b, start, offsets, size, True)
        empty = tl.full((LANES,), FLOOR, tl.float32)
        top_a, sum_a = gather(a, empty, zero, scale)
        top_b, sum_b = gather(b, empty, zero, scale)
        high_a, total_a = merge(top_a, sum_a)
        high_b, total_b = merge(top_b, sum_b)
    else:
        high_a, total_a, high_b, total_b = scan(
            first, second, step_a, step_b, start, end, scale, LANES, EACH, PACKED
        )  # fmt: skip
    _publish(parts, row, slices, slice, high_a, total_a, high_b, total_b)
    tl.debug_barrier()
    tl.atomic_add(counters + row, 1, sem="release")
    while tl.atomic_add(counters + row, 0, sem="acquire") < slices:
        pass
    tl.debug_barrier()
    lse_a, lse_b, gap = _collect(parts, row, slices, SLICES)
    if HELD:
        totals, of_ps, of_qs = add(
            a, b, zero, zero, zero, scale, lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8, MODE, SAVE
        )  # fmt: skip
        total, of_p, of_q = tl.sum(totals, 0), tl.sum(of_ps, 0), tl.sum(of_qs, 0)
    else:
        total, of_p, of_q = sums(
            first, second, step_a, step_b, start, end, scale, lse_a, lse_b, gap, beta, c2, c3, c4, c5, c6, c7, c8,
            LANES, EACH, PACKED, MODE, SAVE,
        )  # fmt: skip
    _conclude(
        out, stats, found, counters + rows, row, rows, slices, slice, total, of_p, of_q, lse_a, lse_b, gap, unit,
        bound, SLICES, SAVE,
    )  # fmt: skip


@on_its_device
def launch(
    first: torch.Tensor,
    second: torch.Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    labels: torch.Tensor | None = None,
    ignore_index: int = -100,
    save: bool = False,
    plan: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row results (N,) and, with `save`, what the backward needs (5, N): both log2-sum-exps, their difference,
    sum p log2(p/m) and sum q log2(q/m), in bits. `plan` overrides the choice.
    """
    if beta == 1:
        first, second, beta = second, first, 0.0
    rows, size = first.shape
    out = torch.empty(rows, dtype=torch.float32, device=first.device)
    stats = torch.empty((5, rows if save else 0), dtype=torch.float32, device=first.device)
    if not rows:
        return out, stats
    element = max(first.element_size(), second.element_size())
    of = machine(first.device)
    plan = plan or choose(rows, size, element, of)
    cut, how = settings(plan, rows, size, element, of, save), weights(beta)
    tile: dict[str, Any] = {
        "LANES": cut.lanes,
        "EACH": cut.each,
        "PACKED": packed(first, second, cut.each),
        "LABELS": labels is not None,
        "num_warps": cut.warps,
    }
    strides = first.stride(0), second.stride(0), first.stride(1), second.stride(1)
    label = first if labels is None else labels, 0 if labels is None else labels.stride(0)
    scale = 1 / (LN2 * temperature)
    term = scale, how.unit, how.bound, how.beta, *how.series
    if plan == "row":
        _rows[(rows,)](
            first, second, label[0], out, stats, rows, size, *strides, label[1], ignore_index, *term,
            MODE=how.mode, SAVE=save, **tile,
        )  # fmt: skip
        return out, stats
    parts = torch.empty((rows, 4, cut.slices), dtype=torch.float32, device=first.device)
    found = torch.empty((rows, 3, cut.slices), dtype=torch.float32, device=first.device)
    every = {"MODE": how.mode, "SAVE": save, "SLICES": block(cut.slices), **tile}
    grid = (rows * cut.slices,)
    if plan == "split":
        done = torch.empty(rows, dtype=torch.int32, device=first.device)
        _split_scan[grid](
            first, second, label[0], parts, done, size, *strides, label[1], ignore_index, scale,
            cut.slices, cut.span, **tile,
        )  # fmt: skip
        _split_sums[grid](
            first, second, label[0], out, stats, parts, found, done, rows, size, *strides, label[1], ignore_index,
            *term, cut.slices, cut.span, **every,
        )  # fmt: skip
        return out, stats
    # For each row, how many slices have been scanned and how many are done; then the next ticket.
    counters = torch.zeros(2 * rows + 1, dtype=torch.int32, device=first.device)
    _group[grid](
        first, second, label[0], out, stats, parts, found, counters, rows, size, *strides, label[1], ignore_index,
        *term, cut.slices, cut.span, HELD=cut.span == cut.lanes * cut.each, **every,
    )  # fmt: skip
    return out, stats


@torch.library.custom_op(
    "steer::jsd",
    mutates_args=(),
    schema="(Tensor first, Tensor second, float beta, float temperature, Tensor? labels, int ignore_index, bool save)"
    " -> (Tensor, Tensor)",
)
def operator(first, second, beta, temperature, labels, ignore_index, save):  # type: ignore[no-untyped-def]
    if runs(first, second):
        return launch(first, second, beta, temperature, labels, ignore_index, save)
    out = _jsd.reference(  # type: ignore[attr-defined]
        first.detach(), second.detach(), beta=beta, temperature=temperature, labels=labels, ignore_index=ignore_index
    )
    # The reference's backward starts from the logits.
    return out, out.new_zeros((5, first.shape[0] if save else 0), dtype=torch.float32)


@operator.register_fake
def _(first, second, beta, temperature, labels, ignore_index, save):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    rows = first.shape[0]
    stats = torch.empty((5, rows if save else 0), dtype=torch.float32, device=first.device)
    return torch.empty(rows, dtype=wide, device=first.device), stats


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    first, second, beta, temperature, labels, ignore_index, save = inputs
    if not save:
        raise RuntimeError("steer::jsd has a gradient only where it was called with save=True.")
    ctx.save_for_backward(first, second, output[1], labels)
    ctx.how = beta, temperature, ignore_index
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    first, second, stats, labels = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    found = gradients(grad, first, second, stats, *ctx.how[:2], labels, ctx.how[2], *wanted)
    return *(x if w else None for x, w in zip(found, wanted, strict=True)), None, None, None, None, None


operator.register_autograd(_backward, setup_context=_save)


def jsd(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    labels: torch.Tensor | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:
    """`steer_kernels.jsd`."""
    check(first, second, beta, temperature, labels)
    if direct(first, second) and runs(first, second):
        return launch(first, second, beta, temperature, labels, ignore_index)[0]
    save = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    out: torch.Tensor = operator(first, second, beta, temperature, labels, ignore_index, save)[0]
    return out
