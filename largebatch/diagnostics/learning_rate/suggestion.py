"""Suggest a rate from the curves of range tests, or give the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.intervals import LEAST_SEEDS, Interval
from largebatch.diagnostics.learning_rate.range_test import RangeCurve, loss_spread
from largebatch.diagnostics.noise.variance_law import t_quantile

_SURE = 3.0  # least fall of the loss in standard errors
_LEAST_DESCENT = 1e-3  # least relative fall of the loss


@dataclass(frozen=True)
class Reading:
    """Rates read from one curve.

    Attributes:
        steepest: rate at which the loss falls fastest over the log rate (fastai's suggestion); None: see `problem`.
        minimum: rate at which the smoothed loss is lowest; None: see `problem`.
        divergence: rate at which the loss diverged; None if it did not.
        problem: why there is no suggestion: fact, rule, remedy; None if there is one.
    """

    steepest: float | None
    minimum: float | None
    divergence: float | None
    problem: str | None = None


def read_curve(curve: RangeCurve) -> Reading:
    """Find the rates. The first span of the smoothing is ignored, because its means cover few losses."""
    divergence = float(curve.rates[-1]) if curve.diverged else None
    problem = _problem(curve)
    if problem is not None:
        return Reading(None, None, divergence, problem)
    smoothed, rates = curve.smoothed, curve.smoothed_rates
    lowest = int(np.nanargmin(smoothed))
    steepest = _steepest(curve, lowest)
    if steepest is None:
        low = float(curve.rates[0])
        problem = (
            f"the loss falls fastest at the lower end of the range, {low:.3g}: the steepest descent may be below it. "
            f"Lower find_lr.min."
        )
        return Reading(None, float(rates[lowest]), divergence, problem)
    return Reading(float(curve.rates[steepest]), float(rates[lowest]), divergence)


def _problem(curve: RangeCurve) -> str | None:
    """Why the curve gives no suggestion; None if it does."""
    span, used = math.ceil(curve.settings.span), len(curve.rates)
    low, high = curve.settings.min, curve.settings.max
    if used <= 2 * span:
        return (
            f"the loss diverged after {used} of {curve.settings.steps} steps, at {curve.rates[-1]:.3g}: too early "
            f"to detect a descent, which takes {2 * span + 1} steps. Lower find_lr.min={low:g}."
        )
    smoothed = curve.smoothed
    lowest = span + int(np.nanargmin(smoothed[span:]))
    start = float(curve.losses[:span].mean())
    fell, needed = start - float(smoothed[lowest]), max(_SURE * _standard_error(curve), _LEAST_DESCENT * abs(start))
    if not fell > needed:
        return (
            f"the loss never fell: by {fell:.3g} at best, and only {needed:.3g} or more is significant. Use a larger "
            f"batch or more find_lr.steps, or check the model and the data."
        )
    if not curve.diverged and lowest >= used - span:
        return (
            f"the loss still falls at the upper end of the range, {high:g}: the range is too narrow. Raise find_lr.max."
        )
    return None


def _standard_error(curve: RangeCurve) -> float:
    """Standard error of a mean over one span of losses minus a smoothed loss."""
    span = curve.settings.span
    return loss_spread(curve.losses) * math.sqrt(1 / span + 1 / (2 * span - 1))


def _steepest(curve: RangeCurve, lowest: int) -> int | None:
    """Step with the most negative slope between the first span and the lowest loss; None if it is the first of them.

    The slope at a step is that of the line through the losses within one span on both sides. Unlike the exponential
    mean it is symmetric, so it finds the middle of a descent.
    """
    from scipy.signal import savgol_filter

    span = math.ceil(curve.settings.span)
    losses = curve.losses[np.isfinite(curve.losses)]
    slopes = savgol_filter(losses, 2 * span + 1, polyorder=1, deriv=1)
    candidates = slopes[span : lowest + 1]
    if len(candidates) == 0 or int(candidates.argmin()) == 0:
        return None
    return span + int(candidates.argmin())


@dataclass(frozen=True)
class Suggestion:
    """The suggested rate of a batch size, over all its seeds.

    Attributes:
        lr: the rate with its 95 % interval over seeds, NaN ends for fewer than 3; None: no suggestion.
        reason: reason for this rate, or for none.
    """

    lr: Interval | None
    reason: str


def suggest(readings: Sequence[Reading]) -> Suggestion:
    """The rate of the steepest descent, but at most a tenth of the rate of divergence; geometric means over seeds.

    A rate counts only if more than half of the seeds show it. A range test detects divergence late, at rates several
    times too large, because the rate grows faster than the diverging loss.

    >>> seeds = [Reading(0.1, 0.3, 3.0), Reading(0.4, 0.5, 3.0)]
    >>> round(suggest(seeds).lr.value, 6)
    0.2
    >>> suggest([Reading(0.4, 0.5, 3.0)]).reason
    'a tenth of the rate at which the loss diverges, 3 (one seed); the loss falls fastest above it, at 0.4'
    """
    needed = len(readings) // 2 + 1
    steepest = [one.steepest for one in readings if one.steepest is not None]
    diverged = [one.divergence for one in readings if one.divergence is not None]
    if len(steepest) < needed:
        problems = [one.problem for one in readings if one.problem is not None]
        return Suggestion(None, f"{len(problems)} of {len(readings)} seeds show none: {problems[0]}")
    lr = mean_rate(steepest)
    if len(diverged) >= needed and (tenth := mean_rate([rate / 10 for rate in diverged])).value < lr.value:
        return Suggestion(
            tenth,
            f"a tenth of the rate at which the loss diverges, {10 * tenth.value:.3g} ({_seeds(len(diverged))}); the "
            f"loss falls fastest above it, at {lr.value:.3g}",
        )
    return Suggestion(lr, f"the loss falls fastest there ({_seeds(len(steepest))})")


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"geometric mean of {count} seeds"


def scaling_exponent(rates: Sequence[tuple[int, float]]) -> Interval | None:
    """Slope of log rate over log batch size, with its 95 % interval: linear scaling has 1, square-root scaling 0.5.

    Takes (batch size, rate) of all seeds. None for fewer than three pairs, or a single batch size.

    >>> found = scaling_exponent([(32, 0.1), (64, 0.2), (128, 0.4)])
    >>> round(found.value, 3), round(found.high - found.low, 3)
    (1.0, 0.0)
    """
    from scipy.stats import linregress

    sizes, found = (np.log(np.array(column)) for column in zip(*rates, strict=True)) if rates else (np.zeros(0),) * 2
    if len(found) < 3 or len(set(sizes)) < 2:
        return None
    line = linregress(sizes, found)
    reach = t_quantile(len(found) - 1) * float(line.stderr)  # of two parameters: len - 2 degrees of freedom
    return Interval(float(line.slope), float(line.slope) - reach, float(line.slope) + reach)


def mean_rate(rates: Sequence[float]) -> Interval:
    """Geometric mean of the rates of seeds, with Student's 95 % interval of log rates; NaN ends for one or two seeds.

    >>> found = mean_rate([0.1, 0.1, 0.8])
    >>> round(found.value, 6)
    0.2
    """
    logs = np.log(np.array(rates))
    value = float(logs.mean())
    if len(logs) < LEAST_SEEDS:
        return Interval(math.exp(value), math.nan, math.nan)
    reach = t_quantile(len(logs)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(math.exp(value), math.exp(value - reach), math.exp(value + reach))
