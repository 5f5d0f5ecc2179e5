"""What one batch costs against another: steps, samples and time, by the critical batch and the measured step times."""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.diagnostics.intervals import Interval
from largebatch.experiments.advice.assessment import Assessment


@dataclass(frozen=True)
class Ratios:
    """Of a batch over another one, each with its interval; NaN ends: not known. None: no evidence."""

    steps: Interval | None
    samples: Interval | None
    time: Interval | None


def ratios(found: Assessment, batch: int, base: int) -> Ratios:
    """Steps, samples and time to the same target.

    With steps = S_min (1 + B_crit / B) the ratio is monotone in B_crit, so the ends of its interval give those of the
    ratio. The time multiplies that by the ratio of step times, ends by ends.
    """
    if not found.critical:
        return Ratios(None, None, None)
    amount = found.critical[0].amount
    steps = step_ratio(amount, batch, base)
    samples = Interval(*(end * batch / base for end in (steps.value, steps.low, steps.high)))
    one, other = found.at("step_time", batch), found.at("step_time", base)
    timed = {run.global_batch_size for run in found.group.runs if run.step_s}
    if not one.value or not other.value or len(timed) < 2:  # one size does not tell what a step of another one takes
        return Ratios(steps, samples, None)
    low, high = math.nan, math.nan
    if None not in (one.low, one.high, other.low, other.high) and other.low:
        assert one.low is not None
        assert one.high is not None
        assert other.high is not None
        low, high = steps.low * one.low / other.high, steps.high * one.high / other.low
    return Ratios(steps, samples, Interval(steps.value * one.value / other.value, low, high))


def step_ratio(b_crit: Interval, batch: int, base: int) -> Interval:
    """(1 + B_crit / batch) / (1 + B_crit / base), and its range over the interval of B_crit.

    >>> step_ratio(Interval(64.0, 0.0, math.inf), 64, 16)
    Interval(value=0.4, low=0.25, high=1.0)
    """

    def at(crit: float) -> float:
        return base / batch if math.isinf(crit) else (1 + crit / batch) / (1 + crit / base)

    ends = sorted((at(b_crit.low), at(b_crit.high)))
    return Interval(at(b_crit.value), *ends)


def span(amount: Interval) -> str:
    """An interval of samples whose ends may be open.

    >>> span(Interval(64, 32, 128)), span(Interval(64, 32, math.inf)), span(Interval(64, 0, math.inf))
    ('32 to 128', '32 or more', 'not bounded by the evidence')
    """
    if math.isinf(amount.high):
        return f"{amount.low:,.0f} or more" if amount.low else "not bounded by the evidence"
    return f"{amount.low:,.0f} to {amount.high:,.0f}" if amount.low else f"{amount.high:,.0f} or less"
