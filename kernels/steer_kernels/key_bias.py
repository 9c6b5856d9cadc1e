"""K5 for attention that takes no mask: a bias of low rank on the scores, as more columns of queries and keys.

    scaling <q', k'> = scaling <q, k> + sum_r a_r b_r,   q' = [q, a / scaling, 0], k' = [k, b, 0], v' = [v, 0]

Values are widened as much, for functions that want one width, and the output's last columns are dropped by the caller.
Zeros fill up to a width that the attention function likes.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from .dispatch import kernel


@kernel
def key_bias(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    extra: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Widen queries, keys and values by `extra` columns that carry the bias; differentiable in all five.

    Nothing is clamped, and NaN or infinity goes where its row goes. What is copied is copied bit for bit.

    Args:
        query: (B, H, T, d), any strides, floating.
        key: (B, H_kv, S, d), likewise.
        value: (B, H_kv, S, d_v), likewise; d_v need not be d.
        a: (B or 1, H or 1, T or 1, r), the query's factors of the scaled scores.
        b: (B or 1, H_kv or 1, S or 1, r), the key's factors.
        scaling: what attention multiplies scores by.
        extra: columns to add, r or more.

    Returns:
        (B, H, T, d + extra), (B, H_kv, S, d + extra) and (B, H_kv, S, d_v + extra), each in its own dtype.

    Raises:
        ValueError: shapes that do not go together, fewer columns than factors, or a scaling of 0.
    """
    check(query, key, value, a, b, scaling, extra)
    return _joined(query, a / scaling, extra), _joined(key, b, extra), pad(value, (0, extra))


def _joined(x: torch.Tensor, factors: torch.Tensor, extra: int) -> torch.Tensor:
    # expanded while it is wide: gradients are summed over what it is expanded to
    columns = pad(factors, (0, extra - factors.shape[-1])).expand(*x.shape[:3], extra).to(x.dtype)
    return torch.cat([x, columns], dim=-1)


def check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    extra: int,
) -> None:
    """Raise ValueError for what `key_bias` promises to refuse."""
    shapes = [list(x.shape) for x in (query, key, value)]
    if not query.ndim == key.ndim == value.ndim == 4 or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"key_bias takes query (B, H, T, d), key (B, H_kv, S, d) and value (B, H_kv, S, d_v); got {shapes}"
        )
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key are of one batch and width; got {shapes[0]} and {shapes[1]}")
    for name, factors, x in (("a", a, query), ("b", b, key)):
        if factors.ndim != 4 or any(n not in (1, m) for n, m in zip(factors.shape[:3], x.shape[:3], strict=True)):
            allowed = ", ".join(f"{m} or 1" for m in x.shape[:3])
            raise ValueError(f"{name} is ({allowed}, r); got {list(factors.shape)}")
    if a.shape[3] != b.shape[3] or a.shape[3] > extra:
        raise ValueError(
            "a and b have equally many factors, and extra is at least that; "
            f"got {a.shape[3]}, {b.shape[3]} and extra={extra}"
        )
    if not scaling:
        raise ValueError("a bias is carried by scores that attention scales, and scaling is 0")
