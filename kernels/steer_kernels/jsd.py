"""The Jensen-Shannon divergence of the rows of two logit matrices, in nats, accurate where it is small.

    JS_beta(p, q) = beta KL(p || m) + (1-beta) KL(q || m),  m = beta p + (1-beta) q
    JS_0 = KL(p || q),  JS_1 = KL(q || p)

(beta = 1/2: Lin 1991, IEEE Trans. Inf. Theory 37(1); other beta: arXiv:2306.13649; the ends: as Liger-Kernel has them.)

The textbook form adds terms of both signs that are of first order in d = log p - log q and cancel to second order; in
half precision what is left is noise, and can be negative. Here every term is the larger of p_v and q_v times

    F(d) = -W log W - w u |d|,  u = exp(-|d|),  W = m_v / max(p_v, q_v),  w the weight of the smaller one

or its limit at the ends, which is >= 0, of second order by itself, and moves only in second order when d is off by a
constant, which is how an error of a normaliser enters. At beta = 1/2 it is 1/2 ((1+u) (log 2 - log(1+u)) - u |d|).

    T d JS / d first_v  = beta p_v (log(p_v / m_v) - KL(p || m))         at beta = 0: p_v (d_v - JS)
    T d JS / d second_v = (1-beta) q_v (log(q_v / m_v) - KL(q || m))     at beta = 0: q_v - p_v
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .dispatch import kernel

LN2 = math.log(2.0)
# Elements of one working matrix: 2 MiB in fp32, of which there are four. They should stay in a CPU's caches.
CHUNK = 1 << 19
# exp of this is finite in fp32, and its inverse nothing beside 1.
FAR = 80.0
# 2 F at beta = 1/2, in bits like d, is d^2 times this polynomial where |d| < NEAR (Chebyshev's, to 4e-7 of it).
NEAR = 0.5
SERIES = (0.1732867362, -0.06005284335, 0.0103687224, -0.001075928964)


def check(
    first: torch.Tensor, second: torch.Tensor, beta: float, temperature: float, labels: torch.Tensor | None
) -> None:
    """What both implementations refuse.

    Raises:
        ValueError: see `jsd`.
    """
    if first.dim() != 2 or first.shape != second.shape:
        raise ValueError(f"jsd compares two (N, V) matrices, got {tuple(first.shape)} and {tuple(second.shape)}.")
    if first.shape[0] and not first.shape[1]:
        raise ValueError(f"jsd needs a token to choose, got {tuple(first.shape)}.")
    if not (first.is_floating_point() and second.is_floating_point()):
        raise ValueError(f"jsd compares floating logits, got {first.dtype} and {second.dtype}.")
    if first.device != second.device:
        raise ValueError(f"jsd compares matrices on one device, got {first.device} and {second.device}.")
    if not 0 <= beta <= 1:
        raise ValueError(f"jsd needs a beta from 0 to 1, got {beta}.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"jsd needs a temperature above 0, got {temperature}.")
    if labels is None:
        return
    if labels.shape != first.shape[:1]:
        raise ValueError(f"jsd takes one label a row, {tuple(first.shape[:1])}; got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.device != first.device:
        raise ValueError(f"jsd takes integer labels on {first.device}, got {labels.dtype} on {labels.device}.")


@kernel
def jsd(
    first: torch.Tensor,
    second: torch.Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    labels: torch.Tensor | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:
    """The generalised JS of p = softmax(first / temperature) and q = softmax(second / temperature), row by row.

    Differentiable once in both matrices; no matrix is kept for the backward but the two themselves.

    Args:
        first: logits (N, V), any floating dtype and strides; -inf marks a token that cannot be.
        second: logits (N, V); its dtype may differ.
        beta: the weight of p in the mixture, 0 to 1; 0 is KL(p || q), 1 is KL(q || p).
        temperature: above 0.
        labels: integers (N,) or None. Rows with `ignore_index` give exactly 0, whatever is in them, and no gradient.
        ignore_index: see `labels`.

    Returns:
        (N,), fp32 (fp64 if an input is), never negative and exactly 0 where two rows are equal. Inside (0, 1) it is at
        most the entropy of (beta, 1-beta), ln 2 at 1/2, and its relative error about 1e-7 / min(beta, 1-beta). At the
        ends it is infinite where the one row excludes a token that the other allows; the gradient of the other is then
        NaN. A row with NaN or +inf, or with -inf only, is NaN, and so is its gradient.

    Raises:
        ValueError: the shapes differ or are not (N, V), or devices differ; beta or the temperature is out of range;
            labels are not integers (N,).
    """
    check(first, second, beta, temperature, labels)
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        out: torch.Tensor = _Divergence.apply(first, second, beta, temperature, labels, ignore_index)
        return out
    with torch.no_grad():
        return _forward(first, second, beta, temperature, labels, ignore_index)


class _Divergence(torch.autograd.Function):
    """`_forward`, and in the backward the same quantities once more, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, first: Any, second: Any, beta: Any, temperature: Any, labels: Any, ignore: Any) -> Any:
        ctx.save_for_backward(first, second, labels)
        ctx.how = beta, temperature, ignore
        return _forward(first, second, beta, temperature, labels, ignore)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        first, second, labels = ctx.saved_tensors
        beta, temperature, ignore = ctx.how
        wanted = ctx.needs_input_grad[:2]
        found = gradients(grad, first, second, beta, temperature, labels, ignore, *wanted)
        return *found, None, None, None, None


def _chunks(rows: int, size: int) -> list[slice]:
    """Rows that are worked on together: enough for a chunk, and one for each thread."""
    step = max(1, CHUNK // max(1, size), min(torch.get_num_threads(), 4))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _wide(first: torch.Tensor, second: torch.Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)


def _forward(
    first: torch.Tensor, second: torch.Tensor, beta: float, temperature: float, labels: torch.Tensor | None, ignore: int
) -> torch.Tensor:
    if beta == 1:
        first, second, beta = second, first, 0.0
    work = _Work(first, second, temperature)
    out = first.new_zeros(first.shape[0], dtype=work.dtype)
    for part in _chunks(*first.shape):
        kept = None if labels is None else labels[part] != ignore
        if kept is not None and not kept.any():
            continue
        p, q, d = work.distributions(part)
        # Both probabilities are 0 where d is -inf - -inf, and NaN in all of a row with NaN.
        big = torch.maximum(p, q, out=p)
        if beta == 0.5 and work.dtype == torch.float32:
            value = _dot(big, _half_excess(d, q, work.spare(part))).mul_(0.5 * LN2)
        else:
            value = _dot(big, _excess(d, beta))
        if beta == 0:
            value = torch.where((d == math.inf).any(-1) & ~value.isnan(), math.inf, value)
        out[part] = value if kept is None else torch.where(kept, value, 0.0)
    # Rounding at the two ends of the range.
    return out.clamp_(0.0, math.inf if beta == 0 else -beta * math.log(beta) - (1 - beta) * math.log1p(-beta))


class _Work:
    """One call's working matrices, which every chunk writes over: on a CPU, new pages cost more than arithmetic."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor, temperature: float) -> None:
        self.first, self.second, self.temperature = first, second, temperature
        self.dtype = _wide(first, second)
        self._kept: list[torch.Tensor] = []

    def _matrix(self, i: int, like: torch.Tensor) -> torch.Tensor:
        if i == len(self._kept):
            self._kept.append(like.new_empty(like.shape, dtype=self.dtype))
        return self._kept[i][: like.shape[0]]

    def spare(self, part: slice) -> torch.Tensor:
        """A matrix that nothing is in."""
        return self._matrix(3, self.first[part])

    def distributions(self, part: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """p, q and log2 p - log2 q of some rows; the last may be infinite, or NaN where both are 0."""
        a, b = self.first[part], self.second[part]
        p, q, d = (self._matrix(i, a) for i in range(3))
        # The difference of the raw logits is exact where they are close; normalisers enter as one number a row.
        if a.dtype == b.dtype == self.dtype:
            torch.sub(a, b, out=d)
        else:
            d.copy_(a).sub_(b)
        # In bits, with one rounded factor everywhere: exp2 takes a quarter of exp's time.
        scale = 1 / (LN2 * self.temperature)
        ends = []
        for x, out in ((a, p), (b, q)):
            base = x.amax(-1, keepdim=True).to(self.dtype) * -scale
            x = x if x.dtype == self.dtype else out.copy_(x)
            total = torch.add(base, x, alpha=scale, out=out).exp2_().sum(-1, keepdim=True)
            out *= 1 / total
            ends.append(total.double().log2() - base)
        return p, q, torch.add((ends[1] - ends[0]).to(self.dtype), d, alpha=scale, out=d)


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Row by row; y is written over."""
    return y.mul_(x).sum(-1)


def _mean(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (weight * x).sum(-1, keepdim=True)


def _half_excess(d: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """2 F at beta = 1/2 in fp32, in bits like d; d and both spare matrices are written over."""
    d = d.abs_().nan_to_num_(nan=0.0, posinf=FAR)
    u = torch.neg(d, out=one).exp2_()
    far = torch.log1p(u, out=two).mul_(-1 / LN2).add_(1.0)
    far.addcmul_(far, u).addcmul_(u, d, value=-1)
    near = torch.mul(d, SERIES[-1], out=one)
    for c in SERIES[-2:0:-1]:
        near.add_(c).mul_(d)
    near.add_(SERIES[0]).mul_(d).mul_(d)
    # torch.where takes twenty times as long; with weights 0 and 1, lerp gives exactly the one or the other.
    return torch.lerp(near, far, d.ge_(NEAR), out=one)


def _excess(d: torch.Tensor, beta: float) -> torch.Tensor:
    """F in nats, d in bits; in fp64, where what cancels in first order leaves enough of the second."""
    d = (d.double() * LN2).nan_to_num(nan=0.0, posinf=8 * FAR, neginf=-8 * FAR)
    size = d.abs()
    lost = -torch.expm1(-size)
    u = 1 - lost
    if beta == 0:
        return torch.where(d >= 0, size - lost, lost - u * size)
    # Numbers would make an fp32 tensor.
    weight = torch.where(d >= 0, d.new_tensor(1 - beta), d.new_tensor(beta))
    left = weight * lost
    return (left - 1) * torch.log1p(-left) - weight * u * size


def gradients(
    grad: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    beta: float,
    temperature: float,
    labels: torch.Tensor | None,
    ignore: int,
    want_first: bool,
    want_second: bool,
) -> list[torch.Tensor | None]:
    """The gradients of both matrices; None where one is not wanted."""
    if beta == 1:
        return gradients(grad, second, first, 0.0, temperature, labels, ignore, want_second, want_first)[::-1]
    wanted = want_first, want_second
    found = [torch.zeros_like(x) if w else None for x, w in zip((first, second), wanted, strict=True)]
    work = _Work(first, second, temperature)
    for part in _chunks(*first.shape):
        kept = None if labels is None else labels[part] != ignore
        if kept is not None and not kept.any():
            continue
        p, q, d = work.distributions(part)
        # A row with a NaN in either matrix is NaN in both.
        slope = grad[part].to(work.dtype) / temperature + 0 * (p[:, 0] + q[:, 0])
        d *= LN2
        near = d.nan_to_num(nan=0.0, posinf=FAR, neginf=-FAR).clamp_(-FAR, FAR)
        if beta == 0:
            ratio = d.masked_fill(p == 0, 0.0)
            mean = _mean(p, ratio).masked_fill((d == math.inf).any(-1, keepdim=True), math.nan)
            # Of order d, like p expm1(-d), which is 0 * inf where p is 0.
            straight = torch.where(near.abs() < 1, p * torch.expm1(-near), q - p)
            # It adds up to 0, but for the error of the normalisers.
            changes = p * (ratio - mean), straight - p * straight.sum(-1, keepdim=True)
        else:
            ratio = -torch.log1p((1 - beta) * torch.expm1(-near))
            other = ratio - near
            changes = beta * p * (ratio - _mean(p, ratio)), (1 - beta) * q * (other - _mean(q, other))
        for out, change in zip(found, changes, strict=True):
            if out is not None:
                change *= slope.unsqueeze(-1)
                out[part] = change if kept is None else change.masked_fill_(~kept.unsqueeze(-1), 0.0)
    return found
