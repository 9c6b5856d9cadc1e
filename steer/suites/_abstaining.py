"""Answering only when sure enough: the curve of risk over coverage, and thresholds fitted on one set for another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SteerError
from . import _weighted
from ._arrays import chances, truths


@dataclass(frozen=True)
class RiskCoverage:
    """What is risked if only the surest answers are given; one entry for each threshold, the highest first.

    Attributes:
        threshold: answers with at least this confidence are given, fp64 (K,).
        coverage: share of the questions that are answered then, fp64 (K,).
        risk: share of these answers that is wrong, fp64 (K,).
    """

    threshold: NDArray[np.float64]
    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


@dataclass(frozen=True)
class Abstention:
    """How a threshold does on a set.

    Attributes:
        threshold: answers with at least this confidence are given; inf gives none.
        coverage: share of the questions that are answered.
        risk: share of these answers that is wrong; nan where none is given.
        utility: mean over all questions: 1 for a right answer, `-wrong_cost` for a wrong one, 0 for none.
        n: how many questions.
    """

    threshold: float
    coverage: float
    risk: float
    utility: float
    n: int


def risk_coverage(confidence: ArrayLike, right: ArrayLike) -> RiskCoverage:
    """The curve of risk over coverage; answers of equal confidence are given together.

    Source: R. El-Yaniv and Y. Wiener, JMLR 11 (2010).

    Args:
        confidence: from 0 to 1, (N,).
        right: bool (N,).
    """
    threshold, count, wrong = _groups(confidence, right)
    given = np.cumsum(count)
    return RiskCoverage(threshold, given / given[-1], np.cumsum(wrong) / given)


def aurc(confidence: ArrayLike, right: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean, over i from 1 to N, of the risk of the i surest answers.

    Source: Y. Geifman, G. Uziel and R. El-Yaniv, ICLR 2019 (arXiv:1805.08206). Among equal confidences it is the
    expectation over their orders, so that the order of the questions does not matter.

    Args:
        confidence: from 0 to 1, (N,).
        right: bool (N,).
    """
    sure, well = _pair(confidence, right)
    return float(_weighted.aurc(sure, well, np.ones((1, len(sure))))[0])


def threshold_for_risk(confidence: ArrayLike, right: ArrayLike, risk: float) -> float:
    """The threshold that answers most questions of a development set with at most this share of wrong answers.

    What it promises there, it does not promise elsewhere: measure it with `abstain` on other questions.

    Args:
        confidence: from 0 to 1, (N,).
        right: bool (N,).
        risk: from 0 to 1.

    Returns:
        A confidence; inf where no threshold keeps to the risk.

    Raises:
        SteerError: a risk outside of 0 and 1.
    """
    if not 0 <= risk <= 1:
        raise SteerError(f"risk must be from 0 to 1, got {risk}")
    curve = risk_coverage(confidence, right)
    fits = np.flatnonzero(curve.risk <= risk)
    return float(curve.threshold[fits[-1]]) if len(fits) else float("inf")


def threshold_for_utility(confidence: ArrayLike, right: ArrayLike, wrong_cost: float = 1.0) -> float:
    """The threshold of the best mean utility on a development set, the highest one where several are as good.

    Args:
        confidence: from 0 to 1, (N,).
        right: bool (N,).
        wrong_cost: what a wrong answer costs, where a right one gives 1 and none gives 0.

    Returns:
        A confidence; inf where it is best to answer nothing.

    Raises:
        SteerError: a negative cost.
    """
    if not wrong_cost >= 0:
        raise SteerError(f"wrong_cost must be at least 0, got {wrong_cost}")
    threshold, count, wrong = _groups(confidence, right)
    utility = np.cumsum(count - wrong - wrong_cost * wrong)
    best = int(np.argmax(utility))
    return float(threshold[best]) if utility[best] > 0 else float("inf")


def abstain(confidence: ArrayLike, right: ArrayLike, threshold: float, wrong_cost: float = 1.0) -> Abstention:
    """How it goes if only answers of at least this confidence are given and of the rest is said "I don't know".

    Args:
        confidence: from 0 to 1, (N,).
        right: bool (N,).
        threshold: fitted on other questions.
        wrong_cost: as in `threshold_for_utility`.
    """
    sure, well = _pair(confidence, right)
    given = sure >= threshold
    wrong = int((given & ~well).sum())
    answered = int(given.sum())
    risk = wrong / answered if answered else float("nan")
    utility = (answered - wrong - wrong_cost * wrong) / len(sure)
    return Abstention(float(threshold), answered / len(sure), risk, float(utility), len(sure))


def _groups(
    confidence: ArrayLike, right: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Confidences that occur, the highest first, how many answers have each, and how many of these are wrong."""
    sure, well = _pair(confidence, right)
    values, place, count = np.unique(sure, return_inverse=True, return_counts=True)
    wrong = np.bincount(place[~well], minlength=len(values))
    return values[::-1], count[::-1], wrong[::-1]


def _pair(confidence: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    sure, well = chances(confidence, "confidence"), truths(right, "right")
    if sure.shape != well.shape:
        raise SteerError(f"{len(sure)} confidences and {len(well)} outcomes; give one of each for each question")
    return sure, well
