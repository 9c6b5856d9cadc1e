"""How much attention each key gets from a few observation queries, without the matrix of all of it.

    s[b, h, j] = sum_{w, g} softmax_j(scaling <q[b, h g, w], k[b, h, j]> + mask)_j

The score behind SnapKV (arXiv:2404.14469), H2O (arXiv:2306.14048), TOVA (arXiv:2401.06104) and EMLoC
(arXiv:2505.19812): they differ in which queries observe and in what is done to s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch

from .dispatch import kernel

# Scores of one chunk, of which there are two copies: 8 MiB each in fp32, as much as stays in a last-level cache.
CHUNK = 1 << 21
# But so many rows at least: with fewer, a matrix product waits for the keys.
LEAST = 64


@kernel
@torch.no_grad()
def token_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    *,
    rows: torch.Tensor | None = None,
    reduce: Literal["sum", "mean", "max"] = "sum",
    query_slots: torch.Tensor | None = None,
    key_slots: torch.Tensor | None = None,
    real: torch.Tensor | None = None,
    since: int | None = None,
) -> torch.Tensor:
    """Attention mass per key and KV head, softmax and sums in fp32; forward only.

    A key is visible where everything that is given says so: its slot is no later than the query's and no earlier than
    `since`, it is real, and the mask lets it be seen. With slots instead of a mask nothing of size (W, S) exists.

    A query that sees no key, or whose scores are all -inf, does not count. NaN in a query that counts, or in a key
    that such a query sees, makes NaN of that KV head's score at all keys which that query sees; what nobody sees and
    who does not count may hold anything.

    Args:
        query: observation queries (B, H, W, d), as attention gets them (after RoPE and norms); any strides.
        key: (B, H_kv, S, d); query head i reads KV head i // (H / H_kv).
        scaling: what scores are multiplied by.
        mask: broadcasts to (B, H, W, S); bool with True visible, or additive. None: all keys are visible.
        rows: bool (B, W), the queries that count; None: all.
        reduce: over the queries that count and the query heads of a group. A mean is over those pairs.
        query_slots: where each query stands in the sequence, int64 (W,) or (B, W). Goes with `key_slots`.
        key_slots: where each key stands, int64 (S,) or (B or 1, H_kv or 1, S), in any order.
        real: bool (B or 1, H_kv or 1, S), the keys that are tokens; None: all.
        since: keys at slots before this one are not seen; needs `key_slots`.

    Returns:
        (B, H_kv, S) fp32 (fp64 if query or key is); 0 where no query counts.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, slots of one kind only, or an unknown `reduce`.
    """
    groups = checked(query, key, mask, rows, reduce, query_slots, key_slots, real, since)
    batch, kv_heads, keys, _ = key.shape
    wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    total = torch.zeros(batch, kv_heads, keys, dtype=wide, device=query.device)
    pairs = torch.zeros(batch, kv_heads, 1, dtype=wide, device=query.device)
    if rows is not None:
        query, mask, rows, query_slots = _counting(query, mask, rows, query_slots)
    window = query.shape[2]
    if not (total.numel() and window and groups):
        return total
    # (B, H_kv, W, G, ...): the rows of one query stand together, whatever their heads
    asked = (query.to(wide) * scaling).unflatten(1, (kv_heads, groups)).transpose(2, 3).contiguous()
    if mask is not None:
        mask = mask.expand(batch, query.shape[1], window, keys).unflatten(1, (kv_heads, groups)).transpose(2, 3)
    label = _labels(key, key_slots, real, since)
    seer = (query.new_zeros(1, dtype=torch.int64) if query_slots is None else query_slots).expand(batch, window)
    chunks = list(_chunks(batch, kv_heads, window, groups, keys))
    space = torch.empty(2, max(_size(*chunk) for chunk in chunks) * groups * keys, dtype=wide, device=key.device)
    for b, h, parts in chunks:
        # One conversion for all chunks that read these keys.
        turned = key[b, h].to(wide).flatten(0, 1).mT
        for w in parts:
            at, dark = _columns(None if label is None else label[b, h], seer[b, w], keys)
            if at.start == at.stop:
                continue
            rest = asked[b, h, w]
            shape = (*rest.shape[:-1], at.stop - at.start)
            scores, spread = (x[: math.prod(shape)].view(shape) for x in space)
            flat, weights = scores.flatten(2, 3), spread.flatten(2, 3)
            torch.bmm(rest.flatten(2, 3).flatten(0, 1), turned[..., at], out=flat.flatten(0, 1))
            if mask is not None:
                _add(scores, mask[b, h, w, :, at])
            if dark is not None:
                scores[..., dark[0]].masked_fill_(dark[1], -math.inf)
            top = flat.amax(-1)
            counts = top != -math.inf
            if rows is not None:
                counts &= rows[b, None, w].repeat_interleave(groups, dim=-1)
            torch.softmax(flat, -1, out=weights)
            if not counts.all():
                # Not a product: a padding query may hold NaN.
                weights[~counts] = 0.0
            if not (top < math.inf).all():
                # NaN stays with the keys that its query sees.
                weights.masked_fill_(flat == -math.inf, 0.0)
            here = total[b, h, at]
            if reduce == "max":
                torch.maximum(here, weights.amax(2), out=here)
            else:
                here += weights.sum(2)
                pairs[b, h] += counts.sum(-1, keepdim=True)
    return total / pairs.clamp_min(1) if reduce == "mean" else total


def _counting(
    query: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor, slots: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """The queries that count in some row of the batch, and what goes with them."""
    some = rows.any(0)
    if some.all():
        return query, mask, rows, slots
    if mask is not None and mask.shape[2] > 1:
        mask = mask[:, :, some]
    return query[:, :, some], mask, rows[:, some], None if slots is None else slots[..., some]


def _labels(
    key: torch.Tensor, slots: torch.Tensor | None, real: torch.Tensor | None, since: int | None
) -> torch.Tensor | None:
    """The least slot of the queries that see a key, int64 (B, H_kv, S); None: all queries see all keys."""
    if slots is None and real is None:
        return None
    label = key.new_zeros(1, dtype=torch.int64) if slots is None else slots
    never = torch.iinfo(torch.int64).max
    if since is not None:
        label = label.masked_fill(label < since, never)
    if real is not None:
        label = torch.where(real, label, never)
    return label.expand(key.shape[:3])


def _chunks(
    batch: int, kv_heads: int, window: int, groups: int, keys: int
) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Batch rows, KV heads and, for them, parts of the window, so that each part makes about CHUNK scores at most."""
    each = groups * keys
    heads = min(kv_heads, max(1, CHUNK // (window * each)))
    rows = max(1, CHUNK // (kv_heads * window * each)) if heads == kv_heads else 1
    step = max(-(-LEAST // groups), CHUNK // each)
    parts = [slice(w, min(w + step, window)) for w in range(0, window, step)]
    for b in range(0, batch, rows):
        for h in range(0, kv_heads, heads):
            yield slice(b, min(b + rows, batch)), slice(h, min(h + heads, kv_heads)), parts


def _size(b: slice, h: slice, parts: list[slice]) -> int:
    return (b.stop - b.start) * (h.stop - h.start) * (parts[0].stop - parts[0].start)


def _columns(
    label: torch.Tensor | None, seer: torch.Tensor, keys: int
) -> tuple[slice, tuple[slice, torch.Tensor] | None]:
    """The keys between the first and the last that these queries see, and which of those are hidden from some of them.

    The second is a part of the columns of the first, and bool (b, h or 1, w, 1, n) for it. Behind a long past all but
    the window's own keys, and padding, are seen by all.
    """
    if label is None:
        return slice(0, keys), None
    label = label[:, :1] if label.stride(1) == 0 else label
    least, most = seer.amin(1)[:, None, None], seer.amax(1)[:, None, None]
    at = _between((label <= most).flatten(0, 1).any(0))
    label = label[..., at]
    part = _between((label > least).flatten(0, 1).any(0))
    if part.start == part.stop:
        return at, None
    return at, (part, (label[..., None, part] > seer[:, None, :, None]).unsqueeze(3))


def _between(chosen: torch.Tensor) -> slice:
    """From the first to the last that is chosen."""
    where = chosen.nonzero()
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _add(scores: torch.Tensor, mask: torch.Tensor) -> None:
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -math.inf)
        return
    # A row that is the dtype's lowest number everywhere is masked, though its softmax would be uniform. Half of it,
    # because a mask made in bf16 and widened holds a little more than the wider dtype's lowest.
    scores.add_(mask).masked_fill_(mask <= torch.finfo(mask.dtype).min / 2, -math.inf)


def checked(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    rows: torch.Tensor | None,
    reduce: str,
    query_slots: torch.Tensor | None,
    key_slots: torch.Tensor | None,
    real: torch.Tensor | None,
    since: int | None,
) -> int:
    """Query heads per KV head; raises ValueError for what does not fit."""
    if query.dim() != 4 or key.dim() != 4 or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"token_scores needs query (B, H, W, d) and key (B, H_kv, S, d), got {tuple(query.shape)} and "
            f"{tuple(key.shape)}."
        )
    if not key.shape[1] or query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are no multiple of {key.shape[1]} KV heads.")
    batch, kv_heads, keys, _ = key.shape
    window = query.shape[2]
    full = (batch, query.shape[1], window, keys)
    if mask is not None and not (mask.dim() == 4 and _fits(mask, full)):
        raise ValueError(f"A mask {tuple(mask.shape)} does not broadcast to (B, H, W, S) = {full}.")
    if mask is not None and mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise ValueError(f"A mask is bool (True visible) or additive and floating, got {mask.dtype}.")
    if rows is not None and (rows.dtype != torch.bool or tuple(rows.shape) != (batch, window)):
        raise ValueError(f"rows is bool (B, W) = {(batch, window)}, got {rows.dtype} {tuple(rows.shape)}.")
    if reduce not in ("sum", "mean", "max"):
        raise ValueError(f'reduce is "sum", "mean" or "max", got {reduce!r}.')
    if (query_slots is None) != (key_slots is None):
        raise ValueError(
            "query_slots and key_slots say together which key a query sees; only "
            f"{'key_slots' if query_slots is None else 'query_slots'} is given."
        )
    if since is not None and key_slots is None:
        raise ValueError(f"since={since} is a slot and needs key_slots and query_slots.")
    if query_slots is not None and (
        query_slots.dtype != torch.int64 or tuple(query_slots.shape) not in ((window,), (batch, window))
    ):
        raise ValueError(
            f"query_slots is int64 (W,) = {(window,)} or (B, W) = {(batch, window)}, got {query_slots.dtype} "
            f"{tuple(query_slots.shape)}."
        )
    held = (batch, kv_heads, keys)
    if key_slots is not None and not (
        key_slots.dtype == torch.int64
        and (tuple(key_slots.shape) == (keys,) or (_fits(key_slots, held) and key_slots.shape[2] == keys))
    ):
        raise ValueError(
            f"key_slots is int64 (S,) = {(keys,)} or (B or 1, H_kv or 1, S) = {held}, got {key_slots.dtype} "
            f"{tuple(key_slots.shape)}."
        )
    if real is not None and not (real.dtype == torch.bool and _fits(real, held) and real.shape[2] == keys):
        raise ValueError(f"real is bool (B or 1, H_kv or 1, S) = {held}, got {real.dtype} {tuple(real.shape)}.")
    return query.shape[1] // kv_heads


def _fits(x: torch.Tensor, full: tuple[int, ...]) -> bool:
    return x.dim() == len(full) and all(have in (1, want) for have, want in zip(x.shape, full, strict=True))
