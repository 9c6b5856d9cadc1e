"""How far confidence can be trusted, and how sure a number is: calibration, abstention, intervals, paired tests.

Everything here is numpy in fp64, on arrays of one number for each question, (N,), in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SteerError, unknown_name
from . import _weighted
from ._abstaining import (
    Abstention,
    RiskCoverage,
    abstain,
    aurc,
    risk_coverage,
    threshold_for_risk,
    threshold_for_utility,
)
from ._arrays import chances, truths
from ._resampling import Estimate, McNemar, bootstrap, mcnemar, paired_bootstrap
from ._weighted import mean, share

__all__ = [
    "Abstention", "Estimate", "McNemar", "Reliability", "RiskCoverage",
    "abstain", "aurc", "auroc", "bootstrap", "brier", "ece", "mcnemar", "mean", "nll", "paired_bootstrap",
    "reliability", "risk_coverage", "share", "threshold_for_risk", "threshold_for_utility",
]  # fmt: skip

Bins = Literal["width", "mass"]
# The smallest probability that `nll` reckons with, as scikit-learn's log_loss does for float64.
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram shows: one entry for each bin that is not empty.

    Attributes:
        confidence: mean in the bin, fp64 (K,).
        right: share that is right, fp64 (K,).
        count: how many, int64 (K,).
    """

    confidence: NDArray[np.float64]
    right: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability(confidence: ArrayLike, right: ArrayLike, *, bins: int = 15, by: Bins = "width") -> Reliability:
    """Bin answers by confidence.

    Args:
        confidence: from 0 to 1, (N,).
        right: whether the answer is right, bool (N,).
        bins: how many.
        by: "width", bins of equal width, open below and closed above (0 is in the first); "mass", bins of as many
            answers each, where equal confidences stay in one bin.

    Raises:
        SteerError: no answers, arrays of different lengths, or numbers outside of 0 and 1.
    """
    sure, well = _pair(confidence, right)
    place = _bins(sure, bins, by)
    count = np.bincount(place, minlength=bins)
    kept = count > 0
    means = [np.bincount(place, weights=values, minlength=bins)[kept] / count[kept] for values in (sure, well)]
    return Reliability(means[0], means[1], count[kept])


def ece(confidence: ArrayLike, right: ArrayLike, *, bins: int = 15, by: Bins = "width") -> float:
    """Expected calibration error: sum over bins of |B| / N * |share right in B - mean confidence in B|.

    Source: C. Guo et al., ICML 2017 (arXiv:1706.04599), where bins are of equal width. The estimate is above 0 even for
    perfect calibration, by what chance does in the bins: compare only sets of the same size.

    Args:
        confidence: from 0 to 1, (N,).
        right: bool (N,).
        bins: how many.
        by: as in `reliability`.
    """
    sure, well = _pair(confidence, right)
    return float(_weighted.ece(sure, well, np.ones((1, len(sure))), _bins(sure, bins, by))[0])


def brier(chance: ArrayLike, happened: ArrayLike) -> float:
    """Brier score of a yes-or-no question: mean of (p - y)^2, from 0 (right and sure) to 1 (wrong and sure).

    Args:
        chance: of yes, from 0 to 1, (N,).
        happened: whether it is yes, bool (N,).
    """
    p, y = _pair(chance, happened)
    return float(np.mean((p - y) ** 2))


def nll(chance: ArrayLike, happened: ArrayLike) -> float:
    """Mean negative log-likelihood of a yes-or-no question, in nats; no chance counts as less than 2.2e-16.

    Args:
        chance: of yes, from 0 to 1, (N,).
        happened: whether it is yes, bool (N,).
    """
    p, y = _pair(chance, happened)
    return float(np.mean(surprise(p, y)))


def surprise(p: NDArray[np.float64], y: NDArray[Any]) -> NDArray[np.float64]:
    """What `nll` is the mean of: -log of the probability of what is so, (N,)."""
    return -np.log(np.maximum(np.where(y > 0, p, 1 - p), EPS))


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, a tie counting half. Exact.

    Args:
        score: any numbers, (N,).
        positive: bool (N,).

    Returns:
        The area; nan where there are no positives or no negatives.
    """
    values, yes = np.asarray(score, np.float64), truths(positive, "positive")
    if values.shape != yes.shape:
        raise SteerError(
            f"score has the shape {values.shape}, positive {yes.shape}; give one of each for each question"
        )
    if np.isnan(values).any():
        raise SteerError("score must be numbers, got nan; leave out questions that have no score")
    return float(_weighted.auroc(values, yes, np.ones((1, len(yes))))[0])


def _bins(sure: NDArray[np.float64], bins: int, by: str) -> NDArray[np.int64]:
    """The bin of each confidence, (N,)."""
    if bins < 1:
        raise SteerError(f"bins must be at least 1, got {bins}")
    if by == "width":
        return _weighted.width_bins(sure, bins)
    if by == "mass":
        last = np.ceil(len(sure) * np.arange(1, bins) / bins).astype(np.int64) - 1
        return np.searchsorted(np.sort(sure)[last], sure, side="left")
    raise unknown_name("kind of bins", by, ("width", "mass"))


def _pair(confidence: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[Any]]:
    sure, well = chances(confidence, "confidence"), truths(right, "right")
    if sure.shape != well.shape:
        raise SteerError(f"{len(sure)} probabilities and {len(well)} outcomes; give one of each for each question")
    return sure, well.astype(np.float64)
