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
from ._weighted import Weights

Columns = Mapping[str, NDArray[Any]]
# Of columns (N,) each and how often each resample holds each question, (R, N); gives (R,).
Statistic = Callable[[Columns, Weights], NDArray[np.float64]]
# Numbers of questions times resamples that are held at a time.
AT_A_TIME = 2**21


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
    statistic: Callable[[Columns], float],
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
    return estimates({"": _one_by_one(statistic)}, _columns(columns), clusters=clusters, **options)[""]


def paired_bootstrap(
    statistic: Callable[[Columns], float],
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
    return differences({"": _one_by_one(statistic)}, _columns(first), _columns(second), clusters=clusters, **options)[
        ""
    ]


def estimates(
    statistics: Mapping[str, Statistic],
    columns: Columns,
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`bootstrap` of several statistics on the same resamples, many at a time."""
    arrays = _columns(columns)
    values = _of_all(statistics, arrays, np.ones((1, _length(arrays))))[0]
    draws = _draws(arrays, clusters, resamples, seed)
    found = np.concatenate([_of_all(statistics, arrays, w) for w in draws])
    return {name: _interval(float(values[i]), found[:, i], level) for i, name in enumerate(statistics)}


def differences(
    statistics: Mapping[str, Statistic],
    first: Columns,
    second: Columns,
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`paired_bootstrap` of several statistics on the same resamples, many at a time."""
    one, other = _columns(first), _columns(second)
    if _length(one) != _length(other):
        raise SteerError(f"{_length(one)} questions against {_length(other)}; a paired comparison needs the same ones")

    def change(w: Weights) -> NDArray[np.float64]:
        return _of_all(statistics, one, w) - _of_all(statistics, other, w)

    values = change(np.ones((1, _length(one))))[0]
    found = np.concatenate([change(w) for w in _draws(one, clusters, resamples, seed)])
    return {name: _interval(float(values[i]), found[:, i], level) for i, name in enumerate(statistics)}


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


def _draws(arrays: Columns, clusters: Sequence[Any] | None, resamples: int, seed: int) -> Iterator[Weights]:
    """How often each question is in each resample, (R, N), some resamples at a time."""
    length = _length(arrays)
    if resamples < 1:
        raise SteerError(f"resamples must be at least 1, got {resamples}")
    if clusters is not None and len(clusters) != length:
        raise SteerError(f"{len(clusters)} clusters for {length} questions; give one for each")
    numbers: dict[Any, int] = {}
    for one in range(length) if clusters is None else clusters:
        numbers.setdefault(one, len(numbers))
    place = np.array([numbers[one] for one in (range(length) if clusters is None else clusters)])
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk := max(1, AT_A_TIME // length)):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(len(numbers), size=(rows, len(numbers))) + len(numbers) * np.arange(rows)[:, None]
        count = np.bincount(drawn.ravel(), minlength=rows * len(numbers)).reshape(rows, len(numbers))
        yield count[:, place].astype(np.float64)


def _of_all(statistics: Mapping[str, Statistic], arrays: Columns, w: Weights) -> NDArray[np.float64]:
    """Every statistic of every resample, (R, statistics)."""
    return np.stack([np.asarray(one(arrays, w), np.float64) for one in statistics.values()], axis=1)


def _one_by_one(statistic: Callable[[Columns], float]) -> Statistic:
    """A statistic of columns as they are, of many resamples."""

    def found(arrays: Columns, w: Weights) -> NDArray[np.float64]:
        rows = (np.repeat(np.arange(w.shape[1]), one.astype(np.int64)) for one in w)
        return np.array([float(statistic({name: array[i] for name, array in arrays.items()})) for i in rows])

    return found


def _interval(value: float, found: NDArray[np.float64], level: float) -> Estimate:
    real = found[np.isfinite(found)]
    if not len(real) or not math.isfinite(value):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(real, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))
