"""A sum of costs, none below 0, fitted to runs; a prediction holds for one more run, not only for the mean of many."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions.chances import e_to, f_chance, student_quantile

Array = npt.NDArray[np.float64]

_EQUAL = 1e-7  # relative difference of two laws that fit the same values; above rounding, below any measurement
_MOST_ROUNDS, _MOST_HALVED, _SETTLED = 50, 20, 1e-12
_LEAST_OF_A_HALF = 4  # runs, to compare spreads


@dataclass(frozen=True)
class Spread:
    """The standard deviation of log(value / fitted) of runs whose value is `most` at most, with its freedom."""

    most: float
    deviation: float
    freedom: float


@dataclass(frozen=True)
class PositiveLaw:
    """value = sum_j amount_j * term_j, with amounts of 0 or more, and errors that are a constant share of the value.

    Where runs differ too little to tell the terms apart, many laws fit them equally. A prediction takes the law with
    the fewest terms, the last terms first, and its interval covers all of those laws.

    Attributes:
        amounts: of each term, [k]: those of the law that predicts.
        spreads: of log(value / fitted) over runs, by value; empty: no run is left over to tell it.
        laws: amounts of the extreme laws that fit equally, [laws][k].
        basis: places of independent terms, those of the law that predicts and those that were fitted to 0.
        information: of these terms, per squared spread, [basis, basis].
    """

    amounts: Array
    spreads: tuple[Spread, ...]
    laws: tuple[Array, ...]
    basis: tuple[int, ...]
    information: Array

    def at(self, terms: Sequence[float]) -> Interval:
        """The value of one more run with its 95 % prediction interval; NaN ends where the spread is not known.

        The interval is value * exp(-+ t s sqrt(1 + h)): Student's t of the runs left over, s the spread, and h the
        variance of the fit at these terms, per s^2 (Draper and Smith 1998, Applied Regression Analysis, section 3.1,
        on the logarithm). Around it lie the predictions of the laws that fit equally.
        """
        row = np.asarray(terms, dtype=float)
        values = [float(row @ amounts) for amounts in self.laws]
        value = float(row @ self.amounts)
        if not self.spreads or value <= 0:
            return Interval(value, math.nan, math.nan)
        own = row[list(self.basis)] / value
        leverage = float(own @ np.linalg.solve(self.information, own))
        spread = next(one for one in self.spreads if value <= one.most)
        half = student_quantile(spread.freedom) * spread.deviation * math.sqrt(1 + leverage)
        return Interval(value, min(values) * math.exp(-half), max(values) * e_to(half))


def fit_positive_law(terms: Sequence[Sequence[float]], values: Sequence[float]) -> PositiveLaw:
    """Least squares of log(value / fitted), with no amount below 0.

    Args:
        terms: of each run, 0 or more, [n][k]; the first ones are left out first where fewer explain the runs as well.
        values: of each run, above 0, [n].

    Raises:
        ValueError: without runs, or for a value that is not above 0, or a run whose terms are all 0.

    >>> law = fit_positive_law([[1, 10], [1, 20], [1, 40]], [0.3, 0.5, 0.9])
    >>> [round(amount, 6) for amount in law.amounts.tolist()], round(law.at([1, 80]).value, 6)
    ([0.1, 0.02], 1.7)
    >>> law = fit_positive_law([[1, 10], [1, 10]], [0.3, 0.3])  # all of it may be fixed, or grow with the second term
    >>> [round(end, 6) for end in (law.at([1, 20]).value, law.at([1, 20]).low, law.at([1, 20]).high)]
    [0.6, 0.3, 0.6]
    """
    rows, measured = np.asarray(terms, dtype=float), np.asarray(values, dtype=float)
    if not len(measured) or not (measured > 0).all() or not np.isfinite(measured).all():
        raise ValueError(f"{values}: a law of costs needs runs whose values are all above 0 and finite.")
    if rows.ndim != 2 or not (rows >= 0).all() or not (rows.sum(axis=1) > 0).all():
        raise ValueError(f"terms {terms}: a row per run, no term below 0, and one above 0 in every row.")
    best = _least_squares(rows, measured)
    fitted = rows @ best
    rank = int(np.linalg.matrix_rank(rows / np.maximum(rows.max(axis=0), 1e-300)))
    laws = [(tuple(np.flatnonzero(best).tolist()), best)] if rank == rows.shape[1] else _equal_laws(rows, fitted)
    used, amounts = laws[0]
    spreads = _spreads(np.log(measured / fitted), fitted, rank)
    relative = rows / fitted[:, None]
    basis = _independent(relative, used)
    own = relative[:, list(basis)]
    return PositiveLaw(amounts, spreads, tuple(one for _, one in laws), basis, own.T @ own)


def _spreads(errors: Array, fitted: Array, rank: int) -> tuple[Spread, ...]:
    """One spread; two, of small and of large values, where their squares differ more than by chance.

    The test is that of Goldfeld and Quandt 1965, "Some tests for homoscedasticity", at 5 %: the F ratio of the mean
    squared errors of the lower and the upper half. Each half has its share of the freedom.
    """
    count = len(errors)
    if count <= rank:
        return ()
    whole = Spread(math.inf, *_deviation(errors, (count - rank) / count))
    ordered = np.unique(np.round(np.log(fitted), 9))
    middle = float(np.median(np.round(np.log(fitted), 9)))
    above = ordered[ordered > middle]
    lower = np.log(fitted) <= middle + 1e-9
    halves = [errors[lower], errors[~lower]]
    if min(map(len, halves)) < _LEAST_OF_A_HALF:
        return (whole,)
    limit = math.exp((middle + float(above.min())) / 2)
    small, large = (Spread(most, *_deviation(one, (count - rank) / count))
                    for most, one in zip((limit, math.inf), halves, strict=True))  # fmt: skip
    if small.deviation == 0 or large.deviation == 0:
        return (whole,)
    chance = f_chance((large.deviation / small.deviation) ** 2, large.freedom, small.freedom)
    return (small, large) if min(chance, 1 - chance) < 0.025 else (whole,)


def _deviation(errors: Array, share: float) -> tuple[float, float]:
    freedom = len(errors) * share
    return math.sqrt(float((errors**2).sum()) / freedom), freedom


def _independent(columns: Array, used: Sequence[int]) -> tuple[int, ...]:
    """Places of columns that are independent, beginning with `used`: a term that was fitted to 0 is uncertain, too."""
    scaled = columns / np.maximum(columns.max(axis=0), 1e-300)
    basis = list(used)
    for place in range(columns.shape[1]):
        if place not in basis and np.linalg.matrix_rank(scaled[:, [*basis, place]]) > len(basis):
            basis.append(place)
    return tuple(basis)


def _least_squares(rows: Array, measured: Array) -> Array:
    """Gauss-Newton on the logarithm: least squares without negative amounts, shortened where a step overshoots.

    At the fitted f the residual log(v / f') of a law f' is log(v / f) + 1 - f' / f, to first order.
    """
    scale = np.maximum(rows.max(axis=0), 1e-300)
    columns = rows / scale

    def error(amounts: Array) -> float:
        fitted = columns @ amounts
        return float((np.log(measured / fitted) ** 2).sum()) if (fitted > 0).all() else math.inf

    amounts = _not_negative(columns / measured[:, None], np.ones(len(measured)))
    if not (columns @ amounts > 0).all():  # a run whose every term got nothing: begin inside
        amounts = np.full(columns.shape[1], measured.mean() / columns.shape[1])
    reached = error(amounts)
    for _ in range(_MOST_ROUNDS):
        fitted, before = columns @ amounts, reached
        target = _not_negative(columns / fitted[:, None], 1 + np.log(measured / fitted))
        for halved in range(_MOST_HALVED):
            tried = amounts + 0.5**halved * (target - amounts)
            if (found := error(tried)) < reached:
                amounts, reached = tried, found
                break
        if before - reached <= _SETTLED * before:
            break
    return np.asarray(amounts / scale, dtype=float)


def _not_negative(columns: Array, target: Array) -> Array:
    """Least squares with no amount below 0: the best of those on some of the terms; of 3 terms there are 7 choices."""
    count = columns.shape[1]
    best, least = np.zeros(count), math.inf
    for size in range(count, 0, -1):
        for used in itertools.combinations(range(count), size):
            solved, _, rank, _ = np.linalg.lstsq(columns[:, used], target, rcond=None)
            error = float(((columns[:, used] @ solved - target) ** 2).sum())
            if rank == size and (solved >= 0).all() and error < least:
                best, least = np.zeros(count), error
                best[list(used)] = solved
        if size == count and least < math.inf:
            break  # without the bound it is the same
    return best


def _equal_laws(rows: Array, fitted: Array) -> list[tuple[tuple[int, ...], Array]]:
    """The corners of the set of laws that fit equally: no more terms in each than the runs tell apart.

    These laws are all amounts >= 0 with rows @ amounts = fitted: a polytope, whose corners are its solutions on
    independent terms. A prediction is linear in the amounts, so its extremes lie at corners. The first one has the
    fewest terms, and of these the last.
    """
    found = []
    count = rows.shape[1]
    for size in range(1, count + 1):
        for used in reversed(list(itertools.combinations(range(count), size))):
            columns = rows[:, used] / fitted[:, None]
            scale = np.maximum(columns.max(axis=0), 1e-300)
            solved, _, rank, _ = np.linalg.lstsq(columns / scale, np.ones(len(fitted)), rcond=None)
            if rank < size or (solved < 0).any() or np.abs(columns / scale @ solved - 1).max() > _EQUAL:
                continue
            amounts = np.zeros(count)
            amounts[list(used)] = solved / scale
            found.append((used, amounts))
    assert found, "the fit itself is one of them"
    return found
