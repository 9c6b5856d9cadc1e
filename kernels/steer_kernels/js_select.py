"""Which tokens to keep: a number of them, or as few as a Jensen-Shannon divergence from the whole allows.

Read a row's scores as a distribution p over tokens, as attention mass is. Dropping a set of mass rho and dividing the
rest by 1 - rho gives p'. With m = (p + p') / 2, the kept tokens have m = p (2 - rho) / (2 (1 - rho)), the dropped ones
m = p / 2: the divergence depends on rho alone, grows with it from 0 to ln 2, and near 0 is rho ln(2) / 2:

    JS(p, p') = 1/2 [rho ln 2 + (1 - rho) ln(2 (1 - rho) / (2 - rho)) + ln(2 / (2 - rho))]

The smallest set to keep is then what is left when the least-scored tokens go as long as their mass is at most rho(JS).
"""

from __future__ import annotations

import functools
import math
import struct

import torch

from .dispatch import kernel

WORD = {torch.float32: torch.int32, torch.float64: torch.int64}


@kernel
def js_select(
    scores: torch.Tensor,
    budget: float | None = None,
    *,
    count: int | None = None,
    always: torch.Tensor | None = None,
    sinks: int = 0,
    recent: int = 0,
) -> torch.Tensor:
    """The tokens of each row that are kept; of two alike, the earlier one.

    Protected tokens (`always`, `sinks`, `recent`) are kept whatever they score; they are among the `count`, unless they
    are more, and then nothing else is kept. NaN ranks last, together with minus infinity.

    With a budget at least one token of a row is kept. NaN and negative scores have no mass; infinite ones are kept, and
    their mass does not count. A row without mass loses all but its protected tokens, or all but its first best one.

    Args:
        scores: (..., n), floating, not negative, compared in fp32 (fp64 where it is).
        budget: what dropping may cost, in nats, above 0 and at most ln 2. Either this or `count`.
        count: how many tokens each row keeps; all, where it has no more.
        always: bool, broadcasts to the scores.
        sinks: how many of the first tokens are protected.
        recent: how many of the last.

    Returns:
        bool (..., n), true for what is kept.

    Raises:
        ValueError: both or neither of budget and count, one out of range, or an `always` that does not fit.
    """
    always = check(scores, budget, count, always, sinks, recent)
    scores = scores.detach()
    length = scores.shape[-1]
    if not scores.numel() or (count is not None and count >= length):
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)).contiguous()
    keys = _keys(wide, always, sinks, recent)
    if count is not None:
        return _best(keys, count)
    assert budget is not None
    return _within(wide, keys, dropped_mass(budget))


def check(
    scores: torch.Tensor,
    budget: float | None,
    count: int | None,
    always: torch.Tensor | None,
    sinks: int,
    recent: int,
) -> torch.Tensor | None:
    """`always` in the shape of the scores.

    Raises:
        ValueError: what `js_select` promises.
    """
    if not scores.ndim or not scores.is_floating_point():
        raise ValueError(f"scores are floating (..., n); got {list(scores.shape)} {scores.dtype}")
    if (budget is None) == (count is None):
        raise ValueError(f"js_select takes either a budget or a count; got budget={budget} and count={count}")
    if budget is not None and not 0 < budget <= math.log(2):
        raise ValueError(f"a budget is a divergence in nats, above 0 and at most ln 2 = 0.693; got {budget}")
    for name, number in (("count", count), ("sinks", sinks), ("recent", recent)):
        if number is not None and number < 0:
            raise ValueError(f"{name} is a number of tokens, 0 or more; got {number}")
    if always is None:
        return None
    fits = always.ndim <= scores.ndim and all(
        mine in (1, theirs) for mine, theirs in zip(always.shape[::-1], scores.shape[::-1], strict=False)
    )
    if always.dtype != torch.bool or not fits:
        raise ValueError(
            f"always is bool and broadcasts to the scores, {list(scores.shape)}; "
            f"got {list(always.shape)} {always.dtype}"
        )
    return always.expand(scores.shape)


def divergence(rho: float) -> float:
    """The Jensen-Shannon divergence in nats after dropping tokens of mass rho, 0 to 1."""
    if rho >= 1:
        return math.log(2)
    kept, half = math.log1p(-rho), math.log1p(-rho / 2)
    return 0.5 * (rho * math.log(2) + (1 - rho) * kept - (2 - rho) * half)


@functools.lru_cache(maxsize=1024)
def dropped_mass(budget: float) -> float:
    """The largest mass whose loss costs at most `budget`, to 1e-13 of itself, as the sum of two fp32 numbers."""
    if budget >= math.log(2):
        return 1.0
    low, high = 0.0, min(1.0, 4 * budget)  # the divergence is at least rho ln(2) / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if divergence(middle) <= budget else (low, middle)
    return sum(halves(low))


def halves(number: float) -> tuple[float, float]:
    """A number as the sum of two that fp32 holds, to 48 bits: how a kernel gets it."""
    high = struct.unpack("f", struct.pack("f", number))[0]
    return high, struct.unpack("f", struct.pack("f", number - high))[0]


def _keys(scores: torch.Tensor, always: torch.Tensor | None, sinks: int, recent: int) -> torch.Tensor:
    """Integers in the order of the scores: bits of a float, with those of a negative one turned. Protected: the top."""
    length = scores.shape[-1]
    kind = WORD[scores.dtype]
    # + 0.0 makes minus zero zero
    bits = torch.where(scores.isnan(), -math.inf, scores).add_(0.0).view(kind)
    keys = torch.where(bits < 0, bits ^ torch.iinfo(kind).max, bits)
    top = torch.iinfo(kind).max
    if always is not None:
        keys.masked_fill_(always, top)
    keys[..., :sinks] = top
    keys[..., max(0, length - recent) :] = top
    return keys


def _best(keys: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest; a selection takes a sixth of the time of a stable sort."""
    kept = keys == torch.iinfo(keys.dtype).max
    if not count:
        return kept
    least = keys.kthvalue(keys.shape[-1] - count + 1, dim=-1, keepdim=True).values
    over, tied = keys > least, keys == least
    room = count - over.sum(-1, keepdim=True)
    return kept | over | (tied & (tied.cumsum(-1) <= room))


def _within(scores: torch.Tensor, keys: torch.Tensor, rho: float) -> torch.Tensor:
    """Drop the least, of two alike the later, as long as their mass is at most rho of all of it."""
    mass = torch.where((scores > 0) & (scores < math.inf), scores, 0).double()
    limit = mass.sum(-1, keepdim=True) * rho if rho < 1 else math.inf
    safe = (keys == torch.iinfo(keys.dtype).max) | (scores == math.inf)
    ranked = keys.masked_fill(safe, torch.iinfo(keys.dtype).max)
    # a stable sort of the row turned round: of two alike the later one comes first
    order = ranked.flip(-1).sort(dim=-1, stable=True).indices.neg_().add_(keys.shape[-1] - 1)
    goes = (mass.gather(-1, order).cumsum_(-1) <= limit) & ~safe.gather(-1, order)
    # at least the best one stays
    goes[..., -1] = False
    return torch.ones_like(safe).scatter_(-1, order, ~goes)
