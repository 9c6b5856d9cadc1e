"""Numbers that a method has one of, or one for each of its heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from steer.errors import InterventionError

from ._heads import Chosen, Heads


def per_head(value: Any, heads: Heads, field: str, method: str) -> float | tuple[float, ...]:
    """A field's plain form: one number, or a tuple with one for each head.

    Raises:
        InterventionError: it is neither, some number is not finite, or there are more or fewer than heads.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str)
    numbers = list(value) if several else [value]
    for one in numbers:
        if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
            raise InterventionError(
                f"{method}: {field} is a finite number, or one for each of heads in their order; got {one!r}"
            )
    if not several:
        return float(value)
    if heads != "all" and len(numbers) != len(heads):
        raise InterventionError(f"{method}: {field} has {len(numbers)} numbers for {len(heads)} heads")
    return tuple(map(float, numbers))


def by_layer(
    value: float | tuple[float, ...], picked: Sequence[Chosen], field: str, method: str
) -> list[float | torch.Tensor]:
    """For each layer the number, or its heads' numbers, fp32 (k_L,).

    Raises:
        InterventionError: more or fewer numbers than heads, where all of a model's heads are meant.
    """
    if not isinstance(value, tuple):
        return [value] * len(picked)
    total = sum(len(one.heads) for one in picked)
    if len(value) != total:
        raise InterventionError(f"{method}: {field} has {len(value)} numbers, and the model has {total} such heads")
    numbers = torch.tensor(value)
    return [numbers[list(one.places)] for one in picked]
