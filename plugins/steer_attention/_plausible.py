"""Two readings' logits made into one, for methods that take away what a model would say anyway."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from steer.errors import InterventionError


def contrasted(weight: float, plausibility: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(l, l') -> (1 + a) l - a l', where softmax(l) gives a token at least b of what it gives the likeliest; else -inf.

    Whether l and l' are normalised before makes no difference to the probabilities: that moves all tokens' scores by
    one number. Sums are in fp32 and the result has the dtype of l.

    Args:
        weight: a > -1.
        plausibility: b, from 0 (keep every token) to 1 (keep the likeliest).

    Returns:
        What `ops.Contrast` takes as `combine`: (B, T, V), (B, T, V) -> (B, T, V).
    """
    lowest = math.log(plausibility) if plausibility else -math.inf

    def combine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(first.dtype, torch.float32)
        own = first.to(wide)
        mixed = own + weight * (own - second.to(own.device, wide))
        cut = own < own.amax(-1, keepdim=True) + lowest
        return mixed.masked_fill(cut, -math.inf).to(first.dtype)

    return combine


def check_plausibility(value: float, method: str) -> None:
    """Check such a field.

    Raises:
        InterventionError: it is no number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InterventionError(f"{method}: plausibility is a number from 0 to 1, got {value!r}")


def check_number(value: float | None, least: float, field: str, method: str, *, above: bool = False) -> None:
    """Check a field that is a finite number of at least (or, with `above`, more than) `least`, or None to be fitted.

    Raises:
        InterventionError: it is not.
    """
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < least or (above and value == least):
        bound = f"greater than {least:g}" if above else f"of at least {least:g}"
        raise InterventionError(f"{method}: {field} is a finite number {bound}, or None to be fitted; got {value!r}")
