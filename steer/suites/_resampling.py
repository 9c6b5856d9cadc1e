"""How sure a number is: bootstrap intervals, of differences too, and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import SteerError
from ._arrays import truths

Columns = Mapping[str, NDArray[Any]]
Statistic = Callable[[Columns], float]


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; nan where it is not defined (a precision without positives).

    Attributes:
        value: on the questions as they are.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain data for JSON; None for what is not a number."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


@dataclass(frozen=True)
class McNemar:
    """Two ways of answering the same questions.

    Attributes:
        gained: questions that only the first gets right.
        lost: questions that only the second gets right.
        p: two-sided and exact: how likely so uneven a split or a more uneven one is, if neither is better.
    """

    gained: int
    lost: int
    p: float


def bootstrap(
    statistic: Statistic,
    columns: Mapping[str, ArrayLike],
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic with its percentile bootstrap interval.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Resamples on which the
    statistic is nan are left out; an interval of few questions is too narrow, and of none but equal ones it is a point.

    Args:
        statistic: of columns of the same length as they are given here, in any order.
        columns: by name, one value for each question, (N,) each.
        clusters: what each question belongs to, N values: questions of one picture are alike, so whole pictures are
            drawn. None draws single questions.
        resamples: how many are drawn.
        level: of the interval.
        seed: of the draws; the same for the same order of the questions.

    Raises:
        SteerError: no questions, or columns of different lengths.
    """
    options: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    return estimates({"": statistic}, columns, clusters=clusters, **options)[""]


def paired_bootstrap(
    statistic: Statistic,
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The difference of a statistic, first minus second, on the same questions; both are resampled together.

    Args:
        statistic: as in `bootstrap`.
        first: columns of one way of answering, (N,) each.
        second: columns of the other, for the same questions in the same order.
        clusters: as in `bootstrap`.
        resamples: how many are drawn.
        level: of the interval.
        seed: of the draws.

    Raises:
        SteerError: no questions, or columns of different lengths.
    """
    options: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    return differences({"": statistic}, first, second, clusters=clusters, **options)[""]


def estimates(
    statistics: Mapping[str, Statistic],
    columns: Mapping[str, ArrayLike],
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`bootstrap` of several statistics on the same resamples."""
    arrays = _columns(columns)
    draws = _draws(arrays, clusters, resamples, seed)
    found = np.array([[_of(one, arrays, rows) for one in statistics.values()] for rows in draws])
    values = [float(one(arrays)) for one in statistics.values()]
    return {name: _interval(values[i], found[:, i], level) for i, name in enumerate(statistics)}


def differences(
    statistics: Mapping[str, Statistic],
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`paired_bootstrap` of several statistics on the same resamples."""
    one, other = _columns(first), _columns(second)
    if _length(one) != _length(other):
        raise SteerError(f"{_length(one)} questions against {_length(other)}; a paired comparison needs the same ones")
    draws = _draws(one, clusters, resamples, seed)
    changes = [[_of(of, one, rows) - _of(of, other, rows) for of in statistics.values()] for rows in draws]
    values = [float(of(one)) - float(of(other)) for of in statistics.values()]
    return {name: _interval(values[i], np.array(changes)[:, i], level) for i, name in enumerate(statistics)}


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's exact test: of the questions that one way gets right and the other wrong, are as many each way?

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; the exact form is a two-sided sign test.

    Args:
        first: which questions one way gets right, bool (N,).
        second: which ones the other does, for the same questions in the same order.

    Raises:
        SteerError: no questions, or arrays of different lengths.
    """
    one, other = truths(first, "first"), truths(second, "second")
    if one.shape != other.shape:
        raise SteerError(f"{len(one)} questions against {len(other)}; a paired comparison needs the same ones")
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    differing = gained + lost
    # Binomial coefficients as whole numbers, divided once: exact for any number of questions.
    tail = term = 1
    for k in range(min(gained, lost)):
        term = term * (differing - k) // (k + 1)
        tail += term
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**differing))


def _columns(columns: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    lengths = {name: array.shape for name, array in arrays.items()}
    if not arrays or len(set(lengths.values())) != 1 or len(next(iter(lengths.values()))) != 1 or not _length(arrays):
        raise SteerError(f"columns must have one value for each of one or more questions, got the shapes {lengths}")
    return arrays


def _length(arrays: Columns) -> int:
    return len(next(iter(arrays.values())))


def _clusters(arrays: Columns, clusters: Sequence[Any] | None) -> list[NDArray[np.int64]] | int:
    """The questions of each cluster; their number where each is its own."""
    length = _length(arrays)
    if clusters is None:
        return length
    if len(clusters) != length:
        raise SteerError(f"{len(clusters)} clusters for {length} questions; give one for each")
    members: dict[Any, list[int]] = {}
    for index, one in enumerate(clusters):
        members.setdefault(one, []).append(index)
    return length if len(members) == length else [np.array(rows) for rows in members.values()]


def _draws(arrays: Columns, clusters: Sequence[Any] | None, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each resample."""
    if resamples < 1:
        raise SteerError(f"resamples must be at least 1, got {resamples}")
    groups, rng = _clusters(arrays, clusters), np.random.default_rng(seed)
    for _ in range(resamples):
        if isinstance(groups, int):
            yield rng.integers(groups, size=groups)
        else:
            yield np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])


def _of(statistic: Statistic, arrays: Columns, rows: NDArray[np.int64]) -> float:
    return float(statistic({name: array[rows] for name, array in arrays.items()}))


def _interval(value: float, found: NDArray[np.float64], level: float) -> Estimate:
    real = found[np.isfinite(found)]
    if not len(real) or not math.isfinite(value):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(real, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))
