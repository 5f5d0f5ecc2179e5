"""Fit of steps to a target over the batch size: S_min, E_min and B_crit with intervals, verdict and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from largebatch.diagnostics.critical_batch.hyperbola import FAR, Hyperbola, Shift, log_gain, profile_interval
from largebatch.diagnostics.critical_batch.misfit import Misfit, measure_misfit
from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
from largebatch.diagnostics.noise.variance_law import t_quantile

LEAST_BATCH_SIZES = 3  # a curve of two parameters goes through any two points
_REJECTED = 0.01  # p value below which a lack of fit is reported
# Batch sizes are chosen by doubling. An interval of this factor is one doubling to either side. A batch that is off by
# a doubling takes 3 E_min or 3 S_min instead of 2, half as much again.
WIDEST = 4.0
_ENOUGH_BATCH_SIZES = 5
_ROUNDING = 1e-6  # residuals below this are rounding, not noise


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; an end of 0 or infinity is not bounded by the data."""

    value: float
    low: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """Whether the data bound the value on both sides."""
        return self.low > 0 and self.high < math.inf


@dataclass(frozen=True)
class CriticalBatch:
    """The curve S = S_min (1 + B_crit/B), that is E = E_min (1 + B/B_crit) for the samples E = B S.

    Attributes:
        s_min: fewest steps, in the limit of an infinite batch. None, like `e_min` and `b_crit`, if there are too few
            points for a curve.
        e_min: fewest samples, in the limit of an infinitely small batch: S_min B_crit.
        b_crit: batch size that takes twice the fewest steps and twice the fewest samples.
        misfit: residuals of the curve, and errors of its predictions at left-out batch sizes.
        warnings: claims that the evidence does not support, one sentence each.
        rejected: whether an F test rejects the curve. Only a remark: with enough seeds it rejects every curve.
        supported: whether B_crit is bounded on both sides within a factor of 4, lies between measured batch sizes, and
            the misfit is small enough for a decision.
        verdict: `supported`, `extrapolated` or `not supported`, with the numbers behind it.
    """

    points: tuple[StepsToTarget, ...]
    s_min: Estimate | None
    e_min: Estimate | None
    b_crit: Estimate | None
    misfit: Misfit | None
    warnings: tuple[str, ...]
    rejected: bool
    supported: bool
    verdict: str

    def curve(self, batch_sizes: Sequence[float]) -> list[Estimate]:
        """Steps at each batch size with their 95 % interval; empty if there is no curve."""
        if self.b_crit is None:
            return []
        fit = _Fit(self.points)
        return [fit.steps(size) for size in batch_sizes]


def fit_critical_batch(points: Sequence[StepsToTarget]) -> CriticalBatch:
    """Fit the hyperbola to the medians of log steps.

    The unit of evidence is the batch size, not the seed: the seeds of a batch size share its tuned setting and the
    luck of its tuning. So the spread is that of K medians around the curve, on K - 2 degrees of freedom. A 95 %
    interval contains the values at which the profile deviance rises by less than K log(1 + t^2/(K - 2)), with t of
    Student; for a straight line it is exact. Medians that were not reached count as lower bounds (a censored
    likelihood) and not in K. Coverage of all three intervals is 94 to 96 %: 1000 simulations each of 6 or 8 batch
    sizes with 1 to 5 seeds and a noise of 5 to 20 %, with and without noise that the seeds of a batch size share.

    Source: McCandlish et al. 2018, equation 2.11 and appendix A.3; Shallue et al. 2019 for the protocol.

    Raises:
        ValueError: if there are no points, or a batch size comes twice.

    >>> exact = [StepsToTarget(size, (100 * (1 + 64 / size),)) for size in (8, 16, 32, 64, 128, 256)]
    >>> fit = fit_critical_batch(exact)
    >>> round(fit.s_min.value, 3), round(fit.b_crit.value, 3), round(fit.e_min.value, 1), fit.supported
    (100.0, 64.0, 6400.0, True)
    """
    ordered = tuple(sorted(points, key=lambda point: point.batch_size))
    if not ordered or len({point.batch_size for point in ordered}) < len(ordered):
        raise ValueError("a curve needs points, one per batch size. Merge the replicates of a batch size.")
    seen = [point.batch_size for point in ordered if not point.median[1]]
    if len(seen) < LEAST_BATCH_SIZES:
        reason = (
            f"the median reached the target at {len(seen)} of {len(ordered)} batch sizes. S_min and B_crit need "
            f"{LEAST_BATCH_SIZES} or more. Add batch sizes, raise the budget, or choose an easier target."
        )
        verdict = f"not supported: {len(seen)} batch size{'s' * (len(seen) != 1)} reached the target"
        return CriticalBatch(ordered, None, None, None, None, (reason,), False, False, verdict)
    fit = _Fit(ordered)
    s_min, e_min, b_crit, misfit = fit.s_min(), fit.e_min(), fit.b_crit(), fit.misfit()
    lack_of_fit = _lack_of_fit(ordered)
    warnings = (*_limits(b_crit, seen), *lack_of_fit, *_precision(ordered, seen))
    verdict = _verdict(b_crit, misfit, seen)
    is_supported = verdict.startswith("supported")
    return CriticalBatch(ordered, s_min, e_min, b_crit, misfit, warnings, bool(lack_of_fit), is_supported, verdict)


def _verdict(b_crit: Estimate, misfit: Misfit, seen: Sequence[int]) -> str:
    """Verdict from the width of the interval and the prediction error, which both shrink with more evidence."""
    reasons = misfit.reasons
    if not b_crit.is_bounded:
        reasons.append(f"the data do not bound B_crit {'below' if b_crit.low == 0 else 'above'}")
    elif b_crit.high > WIDEST * b_crit.low:
        reasons.append(f"its interval spans a factor of {b_crit.high / b_crit.low:,.2g} (at most {WIDEST:g})")
    if reasons:
        return f"not supported: {'; '.join(reasons)}"
    beyond = max(b_crit.value / seen[-1], seen[0] / b_crit.value)
    if beyond > 1:
        side = "largest" if b_crit.value > seen[-1] else "smallest"
        return f"extrapolated: {misfit.description}, but B_crit is a factor of {beyond:.2g} beyond the {side} batch"
    return f"supported: {misfit.description}"


class _Fit:
    """Estimates from one likelihood."""

    def __init__(self, points: Sequence[StepsToTarget]) -> None:
        medians = [point.median for point in points]
        self._likelihood = Hyperbola(
            np.log([float(point.batch_size) for point in points]),
            np.log([steps for steps, _ in medians]),
            np.array([float(point.num_replicates) for point in points]),
            np.array([hidden for _, hidden in medians]),
        )
        count = self._likelihood.num_seen
        self._threshold = count * math.log1p(t_quantile(count - 1) ** 2 / (count - 2))
        self._a, self._c, self._least = self._likelihood.best_of_all()
        # At an end of the range of c the best curve is a limit: no gain at all, or perfect scaling throughout.
        low, high = self._likelihood.range_of_c
        self._is_flat, self._is_perfect = self._c < low + FAR / 2, self._c > high - FAR / 2
        self._ends_of_c = self._interval(self._likelihood.deviance_of_c, self._c)

    def s_min(self) -> Estimate:
        """S_min = exp(a)."""
        found = self._estimate(lambda c: np.zeros_like(c))
        return replace(found, low=0.0, value=0.0 if self._is_perfect else found.value) if self._has_no_end(1) else found

    def e_min(self) -> Estimate:
        """E_min = exp(a + c)."""
        found = self._estimate(lambda c: c)
        return replace(found, low=0.0, value=0.0 if self._is_flat else found.value) if self._has_no_end(0) else found

    def steps(self, batch_size: float) -> Estimate:
        """Of S(B)."""
        return self._estimate(lambda c: log_gain(c, np.array([math.log(batch_size)]))[..., 0])

    def misfit(self) -> Misfit:
        """Misfit of the best curve."""
        return measure_misfit(self._likelihood, self._a, self._c)

    def b_crit(self) -> Estimate:
        """B_crit = exp(c)."""
        low, high = self._ends_of_c
        value = 0.0 if self._is_flat else math.inf if self._is_perfect else math.exp(self._c)
        return Estimate(value, math.exp(low), math.exp(high))

    def _has_no_end(self, side: int) -> bool:
        """Whether B_crit may be 0 (side 0) or infinite (side 1), so that E_min or S_min is not bounded below."""
        return math.isinf(self._ends_of_c[side])

    def _estimate(self, shift: Shift) -> Estimate:
        value = self._a + float(shift(np.array(self._c)))
        low, high = self._interval(lambda t: self._likelihood.best(shift, t)[1], value)
        return Estimate(math.exp(value), math.exp(low), math.exp(high))

    def _interval(self, profile: Callable[[float], float], value: float) -> tuple[float, float]:
        return profile_interval(profile, value, least=self._least, threshold=self._threshold, reach=2 * FAR)


def _limits(b_crit: Estimate, seen: Sequence[int]) -> list[str]:
    """Warnings on an unbounded or extrapolated B_crit."""
    smallest, largest = seen[0], seen[-1]
    found = []
    if b_crit.high == math.inf:
        found.append(
            f"scaling may be perfect up to batch {largest:,}: B_crit has no upper bound, S_min no lower bound. "
            "Add larger batches."
        )
    if b_crit.low == 0:
        found.append(
            f"batches above {smallest:,} may save no steps: B_crit and E_min have no lower bound. Add smaller batches."
        )
    if 0 < b_crit.value < smallest or largest < b_crit.value < math.inf:
        side = "larger" if b_crit.value > largest else "smaller"
        found.append(
            f"B_crit is extrapolated: it lies outside the batch sizes {smallest:,} to {largest:,} that reached the "
            f"target. Add {side} batches."
        )
    return found


def _lack_of_fit(points: Sequence[StepsToTarget]) -> list[str]:
    """Remark if an F test rejects the curve; with enough seeds it rejects every curve."""
    from scipy.special import fdtrc

    known = [np.log(point.reached) for point in points if not point.censored]
    sizes = [point.batch_size for point in points if not point.censored]
    inside = sum(len(logs) - 1 for logs in known)
    if len(known) <= LEAST_BATCH_SIZES - 1 or inside == 0:
        return []
    weights = np.array([float(len(logs)) for logs in known])
    means = np.array([float(logs.mean()) for logs in known])
    log_sizes = np.log(np.array(sizes, dtype=np.float64))
    likelihood = Hyperbola(log_sizes, means, weights, np.zeros(len(known), dtype=bool))
    a, c, _ = likelihood.best_of_all()
    residuals = means - a - log_gain(np.array(c), log_sizes)
    within = sum(float(((logs - logs.mean()) ** 2).sum()) for logs in known) / inside
    ratio = float(weights @ residuals**2) / (len(known) - 2) / within if within > _ROUNDING**2 else math.inf
    if float(np.abs(residuals).max()) < _ROUNDING or float(fdtrc(len(known) - 2, inside, ratio)) > _REJECTED:
        return []
    worst = int(np.argmax(np.abs(residuals)))
    times = f"{math.sqrt(ratio):,.1f} times what the spread of the seeds explains"
    distance = times if ratio < math.inf else "significant, since the seeds do not differ"
    return [
        f"the curve is not exact: its distance to the means is {distance}, most at batch {sizes[worst]:,} "
        f"({math.expm1(residuals[worst]):+.0%} steps). The verdict depends on the size of the misfit, not on this test."
    ]


def _precision(points: Sequence[StepsToTarget], seen: Sequence[int]) -> list[str]:
    """Warnings on a weak but valid estimate."""
    found = []
    if len(seen) < _ENOUGH_BATCH_SIZES:
        found.append(
            f"{len(seen)} batch sizes leave {len(seen) - 2} degree{'s' * (len(seen) > 3)} of freedom for the spread "
            f"around the curve. Measure {_ENOUGH_BATCH_SIZES} or more."
        )
    hidden = [f"{point.batch_size:,}" for point in points if point.median[1]]
    if hidden:
        found.append(f"the median did not reach the target at batch {', '.join(hidden)}. It counts as a lower bound.")
    if max(point.num_replicates for point in points) == 1:
        found.append("misfit cannot be separated from seed noise: there is one seed per batch size.")
    return found
