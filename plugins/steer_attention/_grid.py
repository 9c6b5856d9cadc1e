"""Which settings are tried where examples decide between them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import steer

Item = TypeVar("Item")


def within(choices: Sequence[Item], budget: int | None, seed: int, method: str) -> list[Item]:
    """At most `budget` of the choices, in their order: the first, which is to be the neutral one, and others by chance.

    Args:
        choices: all settings of a grid.
        budget: how many; None for all.
        seed: of the chance.
        method: name of the method, for errors.

    Raises:
        SteerError: a budget of less than 1.
    """
    if budget is None or budget >= len(choices):
        return list(choices)
    if budget < 1:
        raise steer.SteerError(f"method {method!r}: budget is how many settings are tried, at least 1; got {budget}")
    drawn = random.Random(seed).sample(range(1, len(choices)), budget - 1)
    return [choices[i] for i in (0, *sorted(drawn))]
