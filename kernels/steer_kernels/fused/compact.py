"""`steer_kernels.compact` in Triton: the kept rows read once and written once, keys and values in one launch.

    keys'[b, h, j] = keys[b, h, index[b, h, j]]                                           dropping
    keys'[b, h, j] = sum_s [into[b, h, s] = j] w_s keys[b, h, s] / sum_s [into = j] w_s   merging

Merging sorts the tokens by where they go, so that a column's members are a run: one program sums a column, in the
tokens' order. Numbers are moved as bits of their size while dropping, so that every dtype is the same to the kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..compact import BITS, check
from ..compact import compact as public
from ._op import INTERPRETED, columns, direct, on_its_device, runs

REFERENCE = public.reference  # type: ignore[attr-defined]


@triton.jit
def _copied(x, out, source, to, found, live, width, x2, x3, BLOCK_D: tl.constexpr):
    for first in range(0, width, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        inside = (column < width)[None, :]
        got = tl.load(x + (source * x2)[:, None] + column[None, :] * x3, mask=found[:, None] & inside, other=0)
        tl.store(out + (to * width)[:, None] + column[None, :], got, mask=live[:, None] & inside)


@triton.jit
def compact_kernel(
    keys, values, index, place, new_keys, new_values,
    heads, length, count, tiles, width, value_width,
    k0, k1, k2, k3, v0, v1, v2, v3, i0, i1, i2,
    RAGGED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = row // heads, row % heads
    j = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = j < count
    source = tl.load(index + b * i0 + h * i1 + j.to(tl.int64) * i2, mask=live, other=-1)
    if RAGGED:
        # 0 for what is not valid, else one more than its row in the result
        to = tl.load(place + row * count + j, mask=live, other=0).to(tl.int64) - 1
        live = live & (to >= 0)
    else:
        to = row * count + j
    # a column that is not there comes out as zeros
    found = live & (source >= 0) & (source < length)
    _copied(keys + b * k0 + h * k1, new_keys, source, to, found, live, width, k2, k3, BLOCK_D)
    _copied(values + b * v0 + h * v1, new_values, source, to, found, live, value_width, v2, v3, BLOCK_V)


@triton.jit
def _merged(
    x, out, order, weight, own, begin, end, to, width, x2, x3, w2,
    WEIGHED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    for first in range(0, width, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        inside = column < width
        total = tl.zeros((BLOCK_D,), tl.float32)
        mass = tl.zeros((BLOCK_M,), tl.float32)
        for start in range(begin, end, BLOCK_M):
            member = start + tl.arange(0, BLOCK_M)
            live = member < end
            source = tl.load(order + member, mask=live, other=0)
            mask = live[:, None] & inside[None, :]
            token = tl.load(x + (source * x2)[:, None] + column[None, :] * x3, mask=mask, other=0.0).to(tl.float32)
            share = live.to(tl.float32)
            if WEIGHED:
                share = tl.load(weight + source * w2, mask=live, other=0.0).to(tl.float32)
            mass += share
            total += tl.sum(token * share[:, None], 0)
        whole = tl.zeros((BLOCK_D,), tl.float32) + tl.sum(mass, 0)
        weighs = whole > 0
        alone = tl.load(x + own * x2 + column * x3, mask=inside & ~weighs, other=0.0)
        mean = tl.where(weighs, total / tl.where(weighs, whole, 1.0), alone.to(tl.float32))
        tl.store(out + to * width + column, mean.to(out.dtype.element_ty), mask=inside)


@triton.jit
def merge_kernel(
    keys, values, index, order, bounds, weight, new_keys, new_values,
    heads, length, count, width, value_width,
    k0, k1, k2, k3, v0, v1, v2, v3, i0, i1, i2, w0, w1, w2,
    WEIGHED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    to = tl.program_id(0).to(tl.int64)
    row, j = to // count, to % count
    b, h = row // heads, row % heads
    begin = tl.load(bounds + row * (count + 1) + j)
    end = tl.load(bounds + row * (count + 1) + j + 1)
    own = tl.load(index + b * i0 + h * i1 + j * i2)
    order += row * length
    if WEIGHED:
        weight += b * w0 + h * w1
    _merged(
        keys + b * k0 + h * k1, new_keys, order, weight, own, begin, end, to, width, k2, k3, w2,
        WEIGHED, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    _merged(
        values + b * v0 + h * v1, new_values, order, weight, own, begin, end, to, value_width, v2, v3, w2,
        WEIGHED, BLOCK_M, BLOCK_V,
    )  # fmt: skip


def _settings(width: int, value_width: int) -> dict[str, int]:
    """Tiles of about 4,096 numbers: four vector loads a thread are under way."""
    wide, value_wide = columns(width), columns(value_width)
    tall = max(8, min(128, 4096 // max(wide, value_wide)))
    return {"BLOCK_N": tall, "BLOCK_D": wide, "BLOCK_V": value_wide, "num_warps": 4}


@on_its_device
def launch(
    keys: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    valid: torch.Tensor | None,
    into: torch.Tensor | None,
    weight: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One launch (merging: after a sort), or the reference where Triton does not apply."""
    able = runs(keys, values) if into is not None else keys.is_cuda or INTERPRETED
    if not able or any(x.element_size() not in BITS or not x.shape[-1] for x in (keys, values)):
        found = REFERENCE(keys, values, index, valid=valid, into=into, weight=weight)
        return found[0].contiguous(), found[1].contiguous()
    index = check(keys, values, index, valid, into, weight)
    batch, heads, length, width = keys.shape
    count, value_width = index.shape[-1], values.shape[-1]
    place, shape = None, (batch, heads, count)
    if valid is not None:
        place = valid.flatten().cumsum(0, dtype=torch.int32 if valid.numel() < 1 << 31 else torch.int64)
        shape = (int(place[-1]) if len(place) else 0,)  # type: ignore[assignment]
        place = place * valid.flatten()
    new_keys = torch.empty((*shape, width), dtype=keys.dtype, device=keys.device)
    new_values = torch.empty((*shape, value_width), dtype=values.dtype, device=values.device)
    if not new_keys.numel():
        return new_keys, new_values
    numbers = (width, value_width, *keys.stride(), *values.stride(), *index.stride())
    settings = _settings(width, value_width)
    if into is not None:
        order, bounds = _members(into.expand(batch, heads, length), count)
        weight = None if weight is None else weight.expand(batch, heads, length)
        del settings["BLOCK_N"]
        merge_kernel[(batch * heads * count,)](
            keys, values, index, order, bounds, weight, new_keys, new_values,
            heads, length, count, *numbers, *((0, 0, 0) if weight is None else weight.stride()),
            WEIGHED=weight is not None, BLOCK_M=8, **settings,
        )  # fmt: skip
        return new_keys, new_values
    tiles = triton.cdiv(count, settings["BLOCK_N"])
    compact_kernel[(batch * heads * tiles,)](
        _bits(keys), _bits(values), index, place, _bits(new_keys), _bits(new_values),
        heads, length, count, tiles, *numbers, RAGGED=place is not None, **settings,
    )  # fmt: skip
    return new_keys, new_values


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(BITS[x.element_size()])


def _members(into: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens by where they go, int64 (B, H, S), and where each column's begin and end, int64 (B, H, n + 1)."""
    ordered, order = into.sort(dim=-1, stable=True)
    edges = torch.arange(count + 1, device=into.device).expand(*into.shape[:2], count + 1)
    return order, torch.searchsorted(ordered, edges.contiguous())


@torch.library.custom_op(
    "steer::compact",
    mutates_args=(),
    schema="(Tensor keys, Tensor values, Tensor index, Tensor? valid, Tensor? into, Tensor? weight)"
    " -> (Tensor, Tensor)",
)
def operator(keys, values, index, valid, into, weight):  # type: ignore[no-untyped-def]
    return launch(keys, values, index, valid, into, weight)


@operator.register_fake
def _(keys, values, index, valid, into, weight):  # type: ignore[no-untyped-def]
    shape = (*keys.shape[:2], index.shape[-1])
    if valid is not None:
        shape = (torch.library.get_ctx().new_dynamic_size(),)
    return keys.new_empty((*shape, keys.shape[-1])), values.new_empty((*shape, values.shape[-1]))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    keys, values, index, valid, into, _ = inputs
    ctx.save_for_backward(index, valid)
    ctx.shapes = keys.shape, values.shape
    ctx.merged = into is not None


def _backward(ctx, *grads):  # type: ignore[no-untyped-def]
    if ctx.merged:
        raise NotImplementedError("compact merges forward only: detach the keys and values that are merged")
    index, valid = ctx.saved_tensors
    found = [
        _returned(grad, index, valid, shape) if grad is not None and wanted else None
        for grad, shape, wanted in zip(grads, ctx.shapes, ctx.needs_input_grad[:2], strict=True)
    ]
    return *found, None, None, None, None


def _returned(grad: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
    """The gradient at the columns that it came from, zeros elsewhere."""
    index = index.expand(*shape[:2], index.shape[-1])
    if valid is None:
        return grad.new_zeros(shape).scatter_add_(2, index[..., None].expand(*index.shape, shape[-1]), grad)
    batch, head, _ = valid.nonzero(as_tuple=True)
    return grad.new_zeros(shape).index_put_((batch, head, index[valid]), grad, accumulate=True)


operator.register_autograd(_backward, setup_context=_save)


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    *,
    valid: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`steer_kernels.compact`."""
    if into is not None:
        keys, values, weight = keys.detach(), values.detach(), None if weight is None else weight.detach()
    call = launch if direct(keys, values) else operator
    return call(keys, values, index, valid, into, weight)  # type: ignore[no-any-return]
