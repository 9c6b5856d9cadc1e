"""A smaller cache: the kept keys and values of one layer, one after the other, and what was dropped merged into them.

    keys'[b, h, j] = keys[b, h, index[b, h, j]]                                           dropping
    keys'[b, h, j] = sum_s [into[b, h, s] = j] w_s keys[b, h, s] / sum_s [into = j] w_s   merging

and the same for the values. Dropping only copies, so it is exact in every dtype; merging is summed in fp32 and rounded
once (Token Merging, arXiv:2210.09461, and CaM, arXiv:2406.10774, differ in how they choose `into` and the weights).
"""

from __future__ import annotations

import math

import torch

from .dispatch import kernel

# Tokens that are widened to fp32 at a time while merging: memory beside the result stays constant.
CHUNK = 4096
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@kernel
def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    *,
    valid: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the kept keys and values of a layer into a new contiguous cache.

    Dropping is differentiable in keys and values; merging is forward only.

    Args:
        keys: (B, H, S, d), any strides and dtype (merging: floating).
        values: (B, H, S, d_v), likewise.
        index: columns to keep, int64 (n,) or (B or 1, H or 1, n), usually ascending; from 0 to S - 1.
        valid: bool (B, H, n), where rows and heads keep unequal numbers; what is False is not copied.
        into: int64 (B or 1, H or 1, S), the column of the result, 0 to n - 1, that takes a token up: its own for a kept
            token, -1 for one that is lost. None: what is not in `index` is lost. Not together with `valid`.
        weight: (B or 1, H or 1, S), a token's weight in the mean, not negative; None: all weigh 1. Where the weights of
            a column add up to 0 (or to NaN), the kept token stays as it is.

    Returns:
        (B, H, n, d) and (B, H, n, d_v); with `valid` (N, d) and (N, d_v), the N valid ones in the order of row, head
        and column.

    Raises:
        ValueError: shapes or dtypes that do not fit.
        IndexError: a column beyond S. On CUDA nothing looks, and such a column is 0.
    """
    index = check(keys, values, index, valid, into, weight)
    if into is not None:
        return _merge(keys, index, into, weight), _merge(values, index, into, weight)
    if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
        return _gather(keys, index, valid), _gather(values, index, valid)
    return _copy(keys, values, index, valid)


def check(
    keys: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    valid: torch.Tensor | None,
    into: torch.Tensor | None,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    """The index as (B, H, n).

    Raises:
        ValueError: what `compact` promises.
    """
    if keys.ndim != 4 or values.ndim != 4 or keys.shape[:3] != values.shape[:3]:
        raise ValueError(
            "compact takes keys (B, H, S, d) and values (B, H, S, d_v); "
            f"got {list(keys.shape)} and {list(values.shape)}"
        )
    batch, heads, length = keys.shape[:3]
    _fits("index", index, torch.int64, batch, heads, None)
    index = index.expand(batch, heads, index.shape[-1])
    if valid is not None and (valid.dtype != torch.bool or valid.shape != index.shape):
        raise ValueError(f"valid is bool like the index, {list(index.shape)}; got {list(valid.shape)} {valid.dtype}")
    if into is None and weight is not None:
        raise ValueError("weight is for merging: compact got it without into")
    if into is not None:
        if valid is not None:
            raise ValueError(
                "compact merges where all rows and heads keep equally many: into and valid exclude each other"
            )
        _fits("into", into, torch.int64, batch, heads, length)
        if not (keys.is_floating_point() and values.is_floating_point()):
            raise ValueError(f"compact merges floating numbers; got {keys.dtype} and {values.dtype}")
    if weight is not None:
        _fits("weight", weight, None, batch, heads, length)
    return index


def _fits(
    name: str, given: torch.Tensor, dtype: torch.dtype | None, batch: int, heads: int, length: int | None
) -> None:
    last = given.shape[-1] if given.ndim else -1
    lead = given.ndim == 3 and given.shape[0] in (1, batch) and given.shape[1] in (1, heads)
    right = given.dtype == dtype if dtype else given.is_floating_point()
    if not (lead or (given.ndim == 1 and length is None)) or not right or length not in (None, last):
        kind, size = str(dtype or "floating").removeprefix("torch."), "n" if length is None else length
        also = f" or ({size},)" if length is None else ""
        raise ValueError(
            f"{name} is {kind} ({batch} or 1, {heads} or 1, {size}){also}; got {list(given.shape)} {given.dtype}"
        )


def _copy(
    keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole rows, by memcpy: `gather` and indexing go element by element."""
    if index.numel() and keys.shape[2] <= int(
        index.max() if valid is None else index[valid].max() if valid.any() else -1
    ):
        raise IndexError(f"compact was asked for a column beyond the {keys.shape[2]} that there are")
    found: list[torch.Tensor] = []
    seen: dict[tuple[int, ...], torch.Tensor] = {}
    for x in (keys, values):
        shape = index.shape if valid is None else (-1,)
        if x.stride(-1) != 1 or not x.numel() or not index.numel():
            x = x.contiguous()
        if not x.numel() or not index.numel():
            found.append(_gather(x, index, valid))
            continue
        rows, steps = _rows(x)
        if steps not in seen:
            batch, heads = (torch.arange(n, device=x.device) for n in index.shape[:2])
            at = index if steps[2] == 1 else index * steps[2]
            at = at + (batch[:, None, None] * steps[0] + heads[:, None] * steps[1])
            seen[steps] = at.flatten() if valid is None else at[valid]
        out = rows.index_select(0, seen[steps])
        found.append(out.view(x.dtype).view(*shape, x.shape[-1]) if len(seen[steps]) else x.new_empty(0, x.shape[-1]))
    return found[0], found[1]


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """The same memory as rows of machine words, and how many of them lie between neighbours in B, H and S.

    Rows may overlap: they begin at every common divisor of the strides.
    """
    spread = [step if size > 1 else 0 for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)]
    unit = math.gcd(*spread) or x.shape[-1]
    steps = tuple(step // unit for step in spread)
    count = 1 + sum((size - 1) * step for size, step in zip(x.shape[:3], steps, strict=True))
    rows = x.as_strided((count, x.shape[-1]), (unit, 1))
    size = x.element_size()
    word = next(w for w in (8, 4, 2, 1) if all(n * size % w == 0 for n in (x.shape[-1], unit, x.storage_offset())))
    return rows.view(BITS[word]) if word > size or x.dtype not in BITS.values() else rows, steps  # type: ignore[return-value]


def _gather(x: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    if valid is not None:
        batch, head, _ = valid.nonzero(as_tuple=True)
        return x[batch, head, index[valid]]
    return x.gather(2, index[..., None].expand(*index.shape, x.shape[-1]))


@torch.no_grad()
def _merge(x: torch.Tensor, index: torch.Tensor, into: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    batch, heads, length, width = x.shape
    count = index.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    into = into.expand(batch, heads, length)
    if length and (int(into.max()) >= count or int(into.min()) < -1):
        raise IndexError(f"into says which of the {count} kept columns takes a token up, or -1")
    weight = None if weight is None else weight.expand(batch, heads, length)
    # one more column takes what is lost
    total = torch.zeros(batch * heads, count + 1, width, dtype=wide, device=x.device)
    mass = torch.zeros(batch * heads, count + 1, 1, dtype=wide, device=x.device)
    for row in range(batch * heads):
        here = divmod(row, heads)
        for start in range(0, length, CHUNK):
            part = slice(start, start + CHUNK)
            to = into[here][part] % (count + 1)
            given = torch.ones(len(to), 1, dtype=wide, device=x.device)
            tokens = x[here][part].to(wide)
            if weight is not None:
                given = weight[here][part, None].to(wide)
                tokens = tokens * given
            _add(total[row], to, tokens)
            _add(mass[row], to, given)
    total, mass = (t[:, :count].unflatten(0, (batch, heads)) for t in (total, mass))
    return torch.where(mass > 0, total.div_(mass), _gather(x, index, None)).to(x.dtype)


def _add(sums: torch.Tensor, to: torch.Tensor, tokens: torch.Tensor) -> None:
    """In the tokens' order, on CUDA too (where `index_add_` is a race)."""
    if sums.is_cuda:
        sums.index_put_((to,), tokens, accumulate=True)
    else:
        sums.index_add_(0, to, tokens)
