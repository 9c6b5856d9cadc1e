"""The Jensen-Shannon divergence of the rows of two logit matrices, in nats, accurate where it is small.

    JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m),  m = (p + q) / 2        (Lin 1991, IEEE Trans. Inf. Theory 37(1))
             = 1/2 sum_v m_v h(d_v),  d_v = log p_v - log q_v,  h(d) = d tanh(d/2) - 2 log cosh(d/2)

The textbook form adds terms of both signs that are of first order in d and cancel to second order; in half precision
what is left is noise, and can be negative. Every term of the second form is >= 0, of second order by itself, and moves
only in second order when d is off by a constant, which is how an error of a normaliser enters.
"""

from __future__ import annotations

import math

import torch

from .dispatch import register

LN2 = math.log(2.0)
# Elements of one working matrix: 4 MiB in fp32, of which fewer than ten are alive. Four times as much is three times
# slower on a CPU, where new pages cost more than arithmetic.
CHUNK = 1 << 20


@torch.no_grad()
def jsd(first: torch.Tensor, second: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """JS of softmax(first / temperature) and softmax(second / temperature), row by row; forward only.

    Args:
        first: logits (N, V), any floating dtype; -inf marks a token that cannot be.
        second: logits (N, V); its dtype may differ.
        temperature: above 0.

    Returns:
        (N,) in [0, ln 2], fp32 (fp64 if an input is); exactly 0 where two rows are equal, NaN where a row has NaN.

    Raises:
        ValueError: the shapes differ or are not (N, V), or the temperature is not positive.
    """
    if first.dim() != 2 or first.shape != second.shape:
        raise ValueError(f"jsd compares two (N, V) matrices, got {tuple(first.shape)} and {tuple(second.shape)}.")
    if not temperature > 0:
        raise ValueError(f"jsd needs a temperature above 0, got {temperature}.")
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    out = first.new_empty(first.shape[0], dtype=wide)
    rows = max(1, CHUNK // max(1, first.shape[1]))
    for start in range(0, first.shape[0], rows):
        part = slice(start, start + rows)
        out[part] = _rows(first[part].to(wide) / temperature, second[part].to(wide) / temperature)
    return out.clamp_(0.0, LN2)


def _rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """JS of one chunk of rows; a and b (n, V) are this function's own and are overwritten."""
    top_a, top_b = a.amax(-1, keepdim=True), b.amax(-1, keepdim=True)
    # The difference of the raw logits is exact where they are close; normalisers enter as one number a row.
    d = a - b
    p, q = a.sub_(top_a).exp_(), b.sub_(top_b).exp_()
    sum_p, sum_q = p.sum(-1, keepdim=True), q.sum(-1, keepdim=True)
    d -= (top_a - top_b) + (sum_p.log() - sum_q.log())
    m = p.div_(sum_p).add_(q.div_(sum_q)).mul_(0.5)
    # A token that neither row allows has d = -inf - -inf and adds nothing; a NaN in the logits must not hide there.
    d.masked_fill_(m == 0, 0.0)
    return (m * _excess(d)).sum(-1).mul_(0.5)


def _excess(d: torch.Tensor) -> torch.Tensor:
    """h(d) = d tanh(d/2) - 2 log cosh(d/2), to relative precision for small d and finite for infinite d."""
    size = d.abs()
    half = torch.tanh(size * 0.5)
    near = torch.log1p(-half * half).add_(half * size)
    # From |d| = 1 on, in u = exp(-|d|): no term grows with d. 0 * inf is a token that one row excludes.
    u = torch.exp(-size)
    far = 2 * LN2 - 2 * torch.log1p(u) - 2 * torch.where(u == 0, 0.0, size * u) / (1 + u)
    return torch.where(size < 1, near, far)


register("jsd", jsd)
