"""K3: a vector added to each head's output, as strongly as the token's own query asks for.

    y_h = o_h + m s g_h v_h ,   g_h = sigmoid(<f(q_h), w_h> + b_h - lse_h)

f is the identity, or a LayerNorm without affine terms (eps 1e-5). With the log-sum-exp of the row's masked scores this
is MimIC (arXiv:2504.08851): v is a key-value pair that every query sees, and g its share of the attention.
"""

from __future__ import annotations

import torch

from ._pieces import pieces, whole
from .dispatch import kernel
from .gate import sigmoid_gate

# How many numbers are worked on at a time where there are more than four times as many: what is made in between then
# stays in the cache.
CHUNK = 1 << 18


@kernel
def head_shift(
    o: torch.Tensor,
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    layer_norm: bool = False,
    heads: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gated head shift K3.

    Rows that `rows` leaves out and heads that `heads` leaves out are copied, and their queries and lse may hold
    anything, in the gradients too. Where a query is moved, lse = -inf (it sees no key) opens the gate, lse = +inf shuts
    it, and the gradient through a gate that is open or shut is 0; NaN in its q or lse makes that row of that head NaN.

    Args:
        o: heads' outputs (..., T, H, d_v), any strides; fp16, bf16, fp32 or fp64.
        q: queries (..., T, H, d), any strides.
        w: the gate's weight (H, d), or (1, d) where all heads share one. With `heads`, n for H, here and below.
        b: the gate's bias (H,) or (1,).
        v: what is added, (H, d_v) or (1, d_v).
        lse: (..., T, H), natural logarithm, or None for a gate without it.
        rows: bool (..., T), the rows that move; None for all.
        scale: s.
        layer_norm: whether f is the LayerNorm.
        heads: int64 (n,), ascending and without repeats: only these heads move. None for all.

    Returns:
        y, shape and dtype of o; it shares no memory with o. Everything between is fp32 (fp64 where given).
        Differentiable in o, q, w, b, v and lse.

    Raises:
        ValueError: shapes that do not go together; rows that are not bool.
    """
    check(o, q, w, b, v, lse, rows, heads)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (o, q, w, b, v, lse) if t is not None)
    if wanted and rows is not None:
        # A row that is left out must not reach a gradient as 0 x NaN.
        q = torch.where(rows[..., None, None], q, 0)
        lse = lse if lse is None else torch.where(rows[..., None], lse, 0)
    if scale != 1.0:
        v = v * scale
    if whole(o, q, w, b, v, lse):
        return _shifted(o, q, w, b, v, lse, rows, layer_norm, heads)
    out = torch.empty_like(o)
    rows = None if rows is None else rows.expand(o.shape[:-2])
    for part in pieces(o, -3):
        at = (..., part, slice(None), slice(None))
        out[at] = _shifted(
            o[at], q[at], w, b, v,
            None if lse is None else lse[..., part, :], None if rows is None else rows[..., part], layer_norm, heads,
        )  # fmt: skip
    return out


def _shifted(
    o: torch.Tensor,
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    layer_norm: bool,
    heads: torch.Tensor | None,
) -> torch.Tensor:
    """K3 on all of it at once; v is scaled already."""
    x = o
    if heads is not None:
        x, q = o.index_select(-2, heads), q.index_select(-2, heads)
        lse = None if lse is None else lse.index_select(-1, heads)
    y = torch.addcmul(x, sigmoid_gate(q, w, b, lse, layer_norm), v)
    y = y if y.dtype == o.dtype else y.to(o.dtype)
    if rows is not None:
        y = torch.where(rows[..., None, None], y, x)
    return y if heads is None else o.index_copy(-2, heads, y)


def check(
    o: torch.Tensor,
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor | None,
    rows: torch.Tensor | None,
    heads: torch.Tensor | None,
) -> None:
    """Refuse shapes that do not go together.

    Raises:
        ValueError: what was given, and what there would have to be.
    """
    if o.ndim < 3 or q.shape[:-1] != o.shape[:-1]:
        raise ValueError(
            f"head_shift takes o (..., T, H, d_v) and q (..., T, H, d); got o {tuple(o.shape)} and q {tuple(q.shape)}"
        )
    count = o.shape[-2]
    if heads is not None:
        if heads.ndim != 1 or heads.dtype != torch.int64:
            raise ValueError(
                f"head_shift: heads is int64 (n,), indices of heads; got {heads.dtype} {tuple(heads.shape)}"
            )
        count = heads.shape[0]
    for name, given, last in (("w", w, q.shape[-1:]), ("b", b, q.shape[:0]), ("v", v, o.shape[-1:])):
        shape = given.shape
        if not shape or shape[0] not in (1, count) or shape[1:] != last:
            raise ValueError(
                f"head_shift: {name} is {(count, *last)}, one for each head that moves, or {(1, *last)}; "
                f"got {tuple(shape)}"
            )
    if lse is not None and lse.shape != o.shape[:-1]:
        raise ValueError(f"head_shift: lse is (..., T, H), here {tuple(o.shape[:-1])}; got {tuple(lse.shape)}")
    check_rows("head_shift", rows, o.shape[:-2])


def check_rows(name: str, rows: torch.Tensor | None, shape: torch.Size) -> None:
    """Refuse rows that are not bool of the shape (..., T), or that do not broadcast to it.

    Raises:
        ValueError: what was given, and what there would have to be.
    """
    if rows is None or (rows.shape == shape and rows.dtype == torch.bool):
        return
    fits = len(rows.shape) == len(shape) and all(a in (1, n) for a, n in zip(rows.shape, shape, strict=True))
    if rows.dtype != torch.bool or not fits:
        raise ValueError(f"{name}: rows is bool (..., T), here {tuple(shape)}; got {rows.dtype} {tuple(rows.shape)}")
