"""What rates the curve of a range test suggests, or why it suggests none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.intervals import LEAST_SEEDS, Interval
from largebatch.diagnostics.learning_rate.range_curve import RangeCurve, loss_spread
from largebatch.diagnostics.noise.variance_law import t_quantile

_SURE = 3.0  # standard errors by which a loss must fall
_AGREEMENT = 1.5  # ratio of the limits of seeds
_LEAST_DESCENT = 1e-3  # and share of what it was


@dataclass(frozen=True)
class Reading:
    """Rates that a curve shows.

    Attributes:
        steepest: where the loss falls fastest over the log rate (fastai's suggestion); None: see `problem`.
        minimum: where the smoothed loss is lowest; None: see `problem`.
        divergence: at which the test stopped; None if it did not.
        problem: why there is no suggestion: fact, rule, remedy; None if there is one.
    """

    steepest: float | None
    minimum: float | None
    divergence: float | None
    problem: str | None = None

    @property
    def tenth_of_divergence(self) -> float | None:
        """A tenth of the rate at which the test stopped: a rule of thumb that needs no slope."""
        return None if self.divergence is None else self.divergence / 10


def read_curve(curve: RangeCurve) -> Reading:
    """Find the rates. The first span of the smoothing is left out: a mean there is of few losses."""
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
            f"the loss falls fastest at the lower end of the range, {low:.3g}: the steepest descent may lie below. "
            f"Lower find_lr.min."
        )
        return Reading(None, float(rates[lowest]), divergence, problem)
    return Reading(float(curve.rates[steepest]), float(rates[lowest]), divergence)


def _problem(curve: RangeCurve) -> str | None:
    """Why the shape of the curve suggests nothing."""
    span, used = math.ceil(curve.settings.span), len(curve.rates)
    low, high = curve.settings.lowest, curve.settings.highest
    if used <= 2 * span:
        return (
            f"the loss diverged after {used} of {curve.settings.num_steps} steps, at {curve.rates[-1]:.3g}: too early "
            f"to see a descent, which takes {2 * span + 1}. Lower find_lr.min={low:g}."
        )
    smoothed = curve.smoothed
    lowest = span + int(np.nanargmin(smoothed[span:]))
    start = float(curve.losses[:span].mean())
    fell, needed = start - float(smoothed[lowest]), max(_SURE * _standard_error(curve), _LEAST_DESCENT * abs(start))
    if not fell > needed:
        return (
            f"the loss never fell: by {fell:.3g} at best, where {needed:.3g} would be more than chance. Use a larger "
            f"batch or more find_lr.steps, or look at the model and the data."
        )
    if not curve.diverged and lowest >= used - span:
        return (
            f"the loss still falls at the upper end of the range, {high:g}: the range is too narrow. Raise find_lr.max."
        )
    return None


def _standard_error(curve: RangeCurve) -> float:
    """Of the difference of a mean over a span of losses and a smoothed one."""
    span = curve.settings.span
    return loss_spread(curve.losses) * math.sqrt(1 / span + 1 / (2 * span - 1))


def _steepest(curve: RangeCurve, lowest: int) -> int | None:
    """Step with the most negative slope between the first span and the lowest loss; None if it is the first of them.

    The slope of a step is that of the line through the losses within a span to both sides: unlike the exponential mean
    it looks to both sides alike, so that it finds the middle of a descent.
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
    """One rate for all seeds of a batch size.

    Attributes:
        lr: with its 95 % interval over seeds, whose ends are NaN for fewer than 3; None: nothing is suggested.
        reason: why this rate, or why none.
        limit: the largest stable rate, over seeds; None where none is known.
    """

    lr: Interval | None
    reason: str
    limit: Interval | None = None


def suggest(readings: Sequence[Reading], limits: Sequence[float | None]) -> Suggestion:
    """The steepest descent, as the geometric mean of seeds, but not above half of the largest stable rate.

    More than half of the seeds must show a rate or a limit for it to count. Limits that differ by half are none: seeds
    of a quadratic agree, and what they differ by elsewhere is how the loss bends.

    >>> seeds = [Reading(0.1, 0.3, 1.0), Reading(0.4, 0.5, 1.0)]
    >>> round(suggest(seeds, [0.9, 0.9]).lr.value, 6), suggest(seeds, [0.2, 0.2]).reason
    (0.2, 'half of the largest stable rate, 0.2: the loss falls fastest above it, at 0.2')
    """
    needed = len(readings) // 2 + 1
    steepest = [one.steepest for one in readings if one.steepest is not None]
    known = [one for one in limits if one is not None]
    agree = len(known) >= needed and max(known) < _AGREEMENT * min(known)
    limit = mean_rate(known) if agree else None
    if len(steepest) < needed:
        problems = [one.problem for one in readings if one.problem is not None]
        return Suggestion(None, f"{len(problems)} of {len(readings)} seeds show none: {problems[0]}", limit)
    lr = mean_rate(steepest)
    if limit is not None and limit.value / 2 < lr.value:
        half = Interval(limit.value / 2, limit.low / 2, limit.high / 2)
        reason = (
            f"half of the largest stable rate, {limit.value:.3g}: the loss falls fastest above it, at {lr.value:.3g}"
        )
        return Suggestion(half, reason, limit)
    seeds = "one seed" if len(steepest) == 1 else f"geometric mean of {len(steepest)} seeds"
    return Suggestion(lr, f"the loss falls fastest there ({seeds})", limit)


def scaling_exponent(rates: Sequence[tuple[int, float]]) -> Interval | None:
    """Slope of log rate over log batch size, with its 95 % interval: linear scaling has 1, square-root scaling 0.5.

    Of (batch size, rate) of all seeds. None for fewer than three of them, or of one size: they have no spread.

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
    """Geometric mean of the rates of several seeds, with Student's 95 % interval of log rates; NaN ends for one or two.

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
