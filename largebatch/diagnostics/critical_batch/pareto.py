"""Costs of batch sizes over seeds, and which batch sizes no other one beats in all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.intervals import LEAST_SEEDS, Interval

FRONT, DOMINATED, UNDECIDED = "on the front", "dominated", "undecided"


@dataclass(frozen=True)
class Place:
    """The place of a batch size among the others.

    Attributes:
        status: `on the front`: for each other batch size, the seeds tell that it is better in some cost. `dominated`:
            the seeds tell that another one is better in every cost. `undecided`: neither.
        by: the batch size that dominates it; None: the seeds tell of none.
        is_first: whether the means alone put it on the front.
    """

    status: str
    by: int | None
    is_first: bool


def geometric_mean(values: Sequence[float], *, resolution: float = 0.0) -> Interval:
    """Geometric mean of positive values with Student's 95 % interval of the mean logarithm.

    NaN ends for fewer than 3 values, or for equal ones that were read exactly.

    Args:
        values: one per seed.
        resolution: by which factor beyond 1 a value may have been read too large, as of steps that are known at
            evaluations only; infinite: it is not known, and neither is an interval. A logarithm that is uniform over it
            has the variance log(1 + resolution)^2 / 12; it is added, so that seeds that
            are read alike are not certain. What all values are too large by stays.

    >>> found = geometric_mean([1.0, 2.0, 4.0])  # logs of 2: 0, 1, 2; error 1/sqrt(3), t(2) = 4.303
    >>> round(found.value, 6), round(math.log2(found.high), 3)
    (2.0, 3.484)
    """
    from scipy.special import stdtrit

    mean, variance = _log_mean(values, resolution)
    if len(values) < LEAST_SEEDS or not 0 < variance < math.inf:
        return Interval(math.exp(mean), math.nan, math.nan)
    half = float(stdtrit(len(values) - 1, 0.975)) * math.sqrt(variance)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def ratio_of_means(first: Sequence[float], second: Sequence[float], *, resolution: float = 0.0) -> Interval:
    """Geometric mean of the second over that of the first, with Welch's 95 % interval in logarithms.

    Arguments and ends as of `geometric_mean`.

    >>> round(ratio_of_means([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], resolution=0.05).low, 3)  # t(4) = 2.776
    1.937
    """
    from scipy.special import stdtrit

    (one, v_one), (other, v_other) = (_log_mean(values, resolution) for values in (first, second))
    value = math.exp(other - one)
    if min(len(first), len(second)) < LEAST_SEEDS or not 0 < v_one + v_other < math.inf:
        return Interval(value, math.nan, math.nan)
    freedom = (v_one + v_other) ** 2 / (v_one**2 / (len(first) - 1) + v_other**2 / (len(second) - 1))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(v_one + v_other)
    return Interval(value, value * math.exp(-half), value * math.exp(half))


def pareto_places(costs: Mapping[int, Sequence[Sequence[float]]], *, resolutions: Sequence[float]) -> dict[int, Place]:
    """The place of each batch size in costs of which less is better.

    Each comparison of two batch sizes in one cost is a 95 % interval of their ratio: of a pair with equal costs 2.5 %
    are called better by chance. Dominated needs every cost to be better, so that it is wrong more rarely.

    Args:
        costs: batch size -> for each cost its values over seeds.
        resolutions: of each cost, see `geometric_mean`.

    >>> time, samples = [10.0, 11.0, 12.0], [1.0, 1.1, 1.2]
    >>> twice = [[2 * value for value in one] for one in (time, samples)]
    >>> found = pareto_places({8: [time, samples], 1: twice, 64: [samples, time]}, resolutions=(0, 0))
    >>> [(size, place.status, place.by) for size, place in found.items()]
    [(8, 'on the front', None), (1, 'dominated', 8), (64, 'on the front', None)]
    """
    places = {}
    for size, own in costs.items():
        others = {
            other: [
                ratio_of_means(mine, theirs, resolution=resolution)
                for mine, theirs, resolution in zip(own, values, resolutions, strict=True)
            ]
            for other, values in costs.items()
            if other != size
        }
        places[size] = _place(others)
    return places


def _place(others: Mapping[int, Sequence[Interval]]) -> Place:
    """From the costs of each other batch size over one's own."""
    sure = [size for size, ratios in others.items() if all(one.high < 1 for one in ratios)]
    by = min(sure, key=lambda size: math.fsum(math.log(one.value) for one in others[size]), default=None)
    # A ratio without an interval may be anything.
    is_free = all(any(one.low > 1 for one in ratios) for ratios in others.values())
    is_first = not any(
        all(one.value <= 1 for one in ratios) and any(one.value < 1 for one in ratios) for ratios in others.values()
    )
    return Place(DOMINATED if by is not None else FRONT if is_free else UNDECIDED, by, is_first)


def _log_mean(values: Sequence[float], resolution: float) -> tuple[float, float]:
    """Mean of the logarithms, and the variance of that mean."""
    logs = np.log(np.asarray(values, dtype=np.float64))
    spread = float(np.var(logs, ddof=1)) if len(logs) > 1 else 0.0
    # Equal values differ by rounding of their logarithms.
    spread = 0.0 if len(set(values)) == 1 else spread
    return float(logs.mean()), (spread + math.log1p(resolution) ** 2 / 12) / len(logs)
