"""K4: a gated low-rank change of the query before attention, with or without the rotation that comes before it.

    y = x + m g sqrt(d / r) (x U_q) U_k^T ,   g = sigmoid(<f(x), w> + b - lse)

x is q, or RoPE(q) = q cos + rotate_half(q) sin on the first columns, in transformers' convention. f is the identity, or
a LayerNorm without affine terms (eps 1e-5). Because (x U_q) U_k^T k = (x U_q)(k U_k)^T this is exactly the score term
g (Q U_q)(K U_k)^T / sqrt(r) of Hyper-ICL (arXiv:2606.04434, equations 5 to 9) under the usual 1 / sqrt(d), without a
score matrix: keys, cache and attention kernel stay as they are.
"""

from __future__ import annotations

import torch

from ._dtypes import widened
from ._pieces import pieces, whole
from .dispatch import kernel
from .gate import sigmoid_gate
from .head_shift import check_rows

RANK = 16


@kernel
def query_shift(
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    w: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    *,
    layer_norm: bool = False,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gated low-rank query shift K4.

    Rows that `rows` leaves out are x itself, and what their queries, gate and lse hold reaches no other gradient. An
    lse of -inf opens the gate, +inf shuts it, and the gradient through such a gate is 0; NaN in a moved row's q, gate
    or lse makes that row of that head NaN.

    Args:
        q: queries (..., T, H, d), any strides (often (B, H, T, d), transposed); fp16, bf16, fp32 or fp64.
        u_q: (H, d, r), or (1, d, r) where all heads share one; 1 <= r <= 16.
        u_k: likewise; 0 is the identity.
        w: the gate's weight (H, d) or (1, d); None for no gate, or for `gate`.
        b: the gate's bias (H,) or (1,), with w; None for 0.
        gate: g itself, broadcastable to (..., T, H, 1), in place of w.
        lse: (..., T, H), natural logarithm, with w.
        rows: bool (..., T), the rows that move; None for all.
        layer_norm: whether f is the LayerNorm.
        cos: (B or 1, T, rot), rot even and at most d: q is rotated first. No gradient reaches cos and sin.
        sin: like cos.

    Returns:
        y, shape and dtype of q; it shares no memory with q. Everything between is fp32 (fp64 where given), the rotated
        query too. Differentiable in q, u_q, u_k, w, b, gate and lse.

    Raises:
        ValueError: shapes that do not go together; a rank above 16; w with gate; cos without sin; rows not bool.
    """
    check(q, u_q, u_k, w, b, gate, lse, rows, cos, sin)
    if whole(q, u_q, u_k, w, b, gate, lse):
        return _shifted(q, u_q, u_k, w, b, gate, lse, rows, layer_norm, cos, sin)
    out = torch.empty_like(q)
    gate = None if gate is None else gate.expand(*q.shape[:-1], 1)
    rows = None if rows is None else rows.expand(q.shape[:-2])
    for part in pieces(q, -3):
        at = (..., part, slice(None), slice(None))
        out[at] = _shifted(
            q[at], u_q, u_k, w, b, None if gate is None else gate[at],
            None if lse is None else lse[..., part, :], None if rows is None else rows[..., part], layer_norm,
            None if cos is None else cos[..., part, :], None if sin is None else sin[..., part, :],
        )  # fmt: skip
    return out


def rotated(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on the first columns of q (..., T, H, d) with cos and sin (..., T, rot), in fp32 or wider."""
    wide = widened(q)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    size = cos.shape[-1]
    turned = wide[..., :size]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return turned if size == q.shape[-1] else torch.cat((turned, wide[..., size:]), -1)


def _shifted(
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    w: torch.Tensor | None,
    b: torch.Tensor | None,
    gate: torch.Tensor | None,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    layer_norm: bool,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> torch.Tensor:
    """K4 on all of it at once."""
    if cos is not None and sin is not None:
        x = rotated(q, cos, sin)
    else:
        x = widened(q)
    kept = x
    if rows is not None and torch.is_grad_enabled():
        # A row that is left out must not reach a gradient as 0 x NaN.
        x = torch.where(rows[..., None, None], x, 0)
        lse = lse if lse is None else torch.where(rows[..., None], lse, 0)
        gate = gate if gate is None else torch.where(rows[..., None, None], gate, 0)
    strength = gate if w is None else sigmoid_gate(x, w, b, lse, layer_norm)
    u_q, u_k = (u if u.dtype == x.dtype else u.to(x.dtype) for u in (u_q, u_k))
    # One product for each head, (..., H, T, d): the layout that queries mostly have.
    low = (x.transpose(-3, -2) @ u_q).transpose(-3, -2)
    factor = (u_q.shape[-2] / u_q.shape[-1]) ** 0.5
    low = low * (factor if strength is None else strength * factor)
    step = (low.transpose(-3, -2) @ u_k.mT).transpose(-3, -2)
    y = x + step
    if rows is not None:
        y = torch.where(rows[..., None, None], y, kept)
    return y if y.dtype == q.dtype else y.to(q.dtype)


def check(
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    w: torch.Tensor | None,
    b: torch.Tensor | None,
    gate: torch.Tensor | None,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> None:
    """Refuse shapes that do not go together.

    Raises:
        ValueError: what was given, and what there would have to be.
    """
    if q.ndim < 3:
        raise ValueError(f"query_shift takes q (..., T, H, d); got {tuple(q.shape)}")
    heads, dim = q.shape[-2:]
    for name, given in (("u_q", u_q), ("u_k", u_k)):
        if given.ndim != 3 or given.shape[0] not in (1, heads) or given.shape[1] != dim:
            raise ValueError(
                f"query_shift: {name} is (H, d, r) or (1, d, r), here ({heads}, {dim}, r); got {tuple(given.shape)}"
            )
    rank = u_q.shape[2]
    if u_k.shape[2] != rank or not 1 <= rank <= RANK:
        raise ValueError(
            f"query_shift: u_q and u_k have one rank of 1 to {RANK}; got {tuple(u_q.shape)} and {tuple(u_k.shape)}"
        )
    if w is None:
        if b is not None or lse is not None:
            raise ValueError("query_shift: b and lse belong to a gate with a weight w; got w=None")
    elif gate is not None:
        raise ValueError("query_shift takes a gate as w (and b, lse) or as `gate`; got both")
    elif w.shape != (heads, dim) and w.shape != (1, dim):
        raise ValueError(f"query_shift: w is {(heads, dim)} or {(1, dim)}; got {tuple(w.shape)}")
    elif b is not None and b.shape != (heads,) and b.shape != (1,):
        raise ValueError(f"query_shift: b is ({heads},) or (1,); got {tuple(b.shape)}")
    elif lse is not None and lse.shape != q.shape[:-1]:
        raise ValueError(f"query_shift: lse is (..., T, H), here {tuple(q.shape[:-1])}; got {tuple(lse.shape)}")
    if gate is not None and not _broadcasts(gate, (*q.shape[:-1], 1)):
        raise ValueError(f"query_shift: gate is (..., T, H, 1), here {(*q.shape[:-1], 1)}; got {tuple(gate.shape)}")
    check_rows("query_shift", rows, q.shape[:-2])
    if (cos is None) != (sin is None):
        raise ValueError(f"query_shift takes cos and sin together; got only {'sin' if cos is None else 'cos'}")
    if cos is None or sin is None:
        return
    size = cos.shape[-1] if cos.ndim else 0
    whole = (*q.shape[:-2], size)
    if cos.shape != sin.shape or cos.ndim < 2 or cos.shape[-2] != q.shape[-3] or not _broadcasts(cos, whole):
        raise ValueError(
            f"query_shift: cos and sin are (B or 1, T, rot), here (..., {q.shape[-3]}, rot) for q {tuple(q.shape)}; "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if size % 2 or not 0 < size <= dim:
        raise ValueError(f"query_shift: cos and sin have an even number of columns, 2 to {dim}; got {size}")


def _broadcasts(x: torch.Tensor, shape: tuple[int, ...]) -> bool:
    lead = len(shape) - x.ndim
    return lead >= 0 and all(a in (1, n) for a, n in zip(x.shape, shape[lead:], strict=True))
