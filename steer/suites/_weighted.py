"""Statistics of many resamples at once: a resample is how often it holds each question.

In every function `w` is (R, N): for each of R resamples, how often each of N questions is in it, whole numbers in fp64.
What is returned is (R,). The questions themselves are sorted and binned once, whatever R is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
Numbers = NDArray[np.float64]
BINS = 15


def mean(x: NDArray[Any], w: Weights) -> Numbers:
    """The mean of a column (N,) of numbers or of booleans."""
    return (w @ x.astype(np.float64)) / w.sum(1)


def share(some: NDArray[Any], of: NDArray[Any], w: Weights) -> Numbers:
    """The sum of one column (N,) divided by that of another; nan where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (w @ some.astype(np.float64)) / (w @ of.astype(np.float64))
    return np.where(np.isfinite(found), found, np.nan)


def width_bins(sure: Numbers, bins: int) -> NDArray[np.int64]:
    """The bin of each of N confidences: bins of equal width, open below and closed above, 0 in the first."""
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], sure, side="left")


def ece(sure: Numbers, right: NDArray[Any], w: Weights, place: NDArray[np.int64] | None = None) -> Numbers:
    """Expected calibration error; `place` (N,) has the bins, by default 15 of equal width."""
    place = width_bins(sure, BINS) if place is None else place
    gaps = np.zeros((len(sure), int(place.max()) + 1))
    gaps[np.arange(len(sure)), place] = right.astype(np.float64) - sure
    return np.abs(w @ gaps).sum(1) / w.sum(1)


def auroc(score: Numbers, positive: NDArray[np.bool_], w: Weights) -> Numbers:
    """Area under the ROC curve, a tie counting half; nan where a resample has no positives or no negatives."""
    yes, no = _of_equals(score, w, positive), _of_equals(score, w, ~positive)
    below = np.cumsum(no, 1) - no
    return share_of(((below + no / 2) * yes).sum(1), yes.sum(1) * no.sum(1))


def aurc(sure: Numbers, right: NDArray[np.bool_], w: Weights) -> Numbers:
    """Area under the risk-coverage curve, the expectation over the orders of equal confidences."""
    count, wrong = (_of_equals(-sure, w, rows) for rows in (np.ones_like(right), ~right))
    before, missed = np.cumsum(count, 1) - count, np.cumsum(wrong, 1) - wrong
    total = w.sum(1)
    # Of c equal answers the k-th is expected to bring (wrong / c) k errors: with b answers and m errors before them,
    # sum over k of (m + wrong / c k) / (b + k) = (m - wrong / c b) (H(b + c) - H(b)) + wrong, H the harmonic numbers.
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(total.max()) + 1))])
    steps = harmonic[(before + count).astype(np.int64)] - harmonic[before.astype(np.int64)]
    rate = np.divide(wrong, count, out=np.zeros_like(wrong), where=count > 0)
    return ((missed - rate * before) * steps + wrong).sum(1) / total


def share_of(some: Numbers, of: Numbers) -> Numbers:
    """Some / of, nan where that is 0."""
    return np.divide(some, of, out=np.full_like(some, np.nan), where=of > 0)


def _of_equals(values: Numbers, w: Weights, rows: NDArray[np.bool_]) -> Numbers:
    """How many of `rows` (N,) have each value that there is, in rising order, (R, values)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) > 0)
    return np.add.reduceat((w * rows)[:, order], starts, axis=1)
