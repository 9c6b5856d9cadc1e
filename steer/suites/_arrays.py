"""Arrays as the metrics are given them, checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SteerError


def chances(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Probabilities, fp64 (N,).

    Raises:
        SteerError: not (N,) with N > 0, or a number outside of 0 and 1.
    """
    found = np.asarray(values, np.float64)
    _vector(found, name)
    if not ((found >= 0) & (found <= 1)).all():
        bad = found[~((found >= 0) & (found <= 1))][0]
        raise SteerError(f"{name} must be from 0 to 1, got {bad}; leave out questions that have no probability")
    return found


def truths(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    """Yes or no, bool (N,).

    Raises:
        SteerError: not (N,) with N > 0, or values other than 0 and 1.
    """
    found = np.asarray(values)
    _vector(found, name)
    if found.dtype != np.bool_ and not np.isin(found, (0, 1)).all():
        raise SteerError(f"{name} must be true or false, got {found[~np.isin(found, (0, 1))][0]!r}")
    return found.astype(np.bool_)


def _vector(found: NDArray[np.generic], name: str) -> None:
    if found.ndim != 1 or not len(found):
        raise SteerError(f"{name} must be one number for each of one or more questions, got the shape {found.shape}")
