"""Steps to a target over the batch size: S_min, E_min and B_crit with intervals, and what is not supported."""

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
_REJECTED = 0.01  # p value of a lack of fit that is told
# Batch sizes are chosen by doubling. An interval of this factor is a doubling to either side, and a batch that is off
# by as much takes 3 E_min or 3 S_min in place of 2: half as much again as was meant.
WIDEST = 4.0
_ENOUGH_BATCH_SIZES = 5
_ROUNDING = 1e-6  # residuals that no noise makes


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; 0 and infinity are ends that the data do not bound."""

    value: float
    low: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """Whether the data bound it on both sides."""
        return self.low > 0 and self.high < math.inf


@dataclass(frozen=True)
class CriticalBatch:
    """The curve S = S_min (1 + B_crit/B), that is E = E_min (1 + B/B_crit) for the samples E = B S.

    Attributes:
        s_min: fewest steps, at an infinite batch. None, like the two others, if there are too few points for a curve.
        e_min: fewest samples, at an infinitely small batch: S_min B_crit.
        b_crit: batch size that takes twice the fewest steps and twice the fewest samples.
        misfit: how far the curve is from the points, and from those that it was not fitted to.
        warnings: what the evidence does not support, a sentence each.
        rejected: whether a test tells the curve from the points. A remark: with enough seeds it tells every curve.
        supported: whether B_crit is bounded on both sides within a factor of 4, lies between batch sizes that were
            measured, and the misfit is small enough to decide with.
        verdict: `supported`, `extrapolated` or `not supported`, and because of which numbers.
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
        """Steps at each batch size with their 95 % interval; none if there is no curve."""
        if self.b_crit is None:
            return []
        fit = _Fit(self.points)
        return [fit.steps(size) for size in batch_sizes]


def fit_critical_batch(points: Sequence[StepsToTarget]) -> CriticalBatch:
    """Fit the hyperbola to the medians of log steps.

    The unit of evidence is the batch size, not the seed: seeds share the setting that was tuned for their batch size,
    and whatever of it was luck. So the spread is that of K medians around the curve, on K - 2 degrees of freedom, and
    95 % intervals are where the profile deviance rises by less than K log(1 + t^2/(K - 2)), with t of Student: for a
    straight line that is the exact interval. Medians that were not reached count as lower bounds (a censored
    likelihood) and not in K. In 1000 simulations each of 6 or 8 batch sizes with 1 to 5 seeds and a noise of 5 to 20 %,
    also one that the seeds of a batch size share, 94 to 96 % of the intervals of each of the three held the truth.

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
        raise ValueError("a curve needs points, one per batch size. Put the replicates of a batch size into one.")
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
    told = _lack_of_fit(ordered)
    warnings = (*_limits(b_crit, seen), *told, *_precision(ordered, seen))
    verdict = _verdict(b_crit, misfit, seen)
    is_supported = verdict.startswith("supported")
    return CriticalBatch(ordered, s_min, e_min, b_crit, misfit, warnings, bool(told), is_supported, verdict)


def _verdict(b_crit: Estimate, misfit: Misfit, seen: Sequence[int]) -> str:
    """What evidence strengthens: a narrower interval and a smaller error of prediction."""
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
        return f"extrapolated: {misfit.description}, but B_crit lies {beyond:.2g} times beyond the {side} of them"
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
        # At an end of its range the best curve is a limit: no gain at all, or perfect scaling throughout.
        low, high = self._likelihood.range_of_c
        self._is_flat, self._is_perfect = self._c < low + FAR / 2, self._c > high - FAR / 2
        self._ends_of_c = self._interval(self._likelihood.deviance_of_c, self._c)

    def s_min(self) -> Estimate:
        """Of exp(a)."""
        found = self._estimate(lambda c: np.zeros_like(c))
        return replace(found, low=0.0, value=0.0 if self._is_perfect else found.value) if self._has_no_end(1) else found

    def e_min(self) -> Estimate:
        """Of exp(a + c)."""
        found = self._estimate(lambda c: c)
        return replace(found, low=0.0, value=0.0 if self._is_flat else found.value) if self._has_no_end(0) else found

    def steps(self, batch_size: float) -> Estimate:
        """Of S(B)."""
        return self._estimate(lambda c: log_gain(c, np.array([math.log(batch_size)]))[..., 0])

    def misfit(self) -> Misfit:
        """Of the best curve."""
        return measure_misfit(self._likelihood, self._a, self._c)

    def b_crit(self) -> Estimate:
        """Of exp(c)."""
        low, high = self._ends_of_c
        value = 0.0 if self._is_flat else math.inf if self._is_perfect else math.exp(self._c)
        return Estimate(value, math.exp(low), math.exp(high))

    def _has_no_end(self, side: int) -> bool:
        """Whether B_crit reaches 0 (side 0) or infinity (1): E_min or S_min is then not bounded below."""
        return math.isinf(self._ends_of_c[side])

    def _estimate(self, shift: Shift) -> Estimate:
        value = self._a + float(shift(np.array(self._c)))
        low, high = self._interval(lambda t: self._likelihood.best(shift, t)[1], value)
        return Estimate(math.exp(value), math.exp(low), math.exp(high))

    def _interval(self, profile: Callable[[float], float], value: float) -> tuple[float, float]:
        return profile_interval(profile, value, least=self._least, threshold=self._threshold, reach=2 * FAR)


def _limits(b_crit: Estimate, seen: Sequence[int]) -> list[str]:
    """Sides on which the data do not bound B_crit, and extrapolation."""
    smallest, largest = seen[0], seen[-1]
    found = []
    if b_crit.high == math.inf:
        found.append(
            f"perfect scaling up to batch {largest:,} is not excluded: B_crit has no upper bound, S_min no lower one. "
            "Add larger batches."
        )
    if b_crit.low == 0:
        found.append(
            f"it is not excluded that batches above {smallest:,} save no steps: B_crit and E_min have no lower bound. "
            "Add smaller batches."
        )
    if 0 < b_crit.value < smallest or largest < b_crit.value < math.inf:
        side = "larger" if b_crit.value > largest else "smaller"
        found.append(
            f"B_crit is extrapolated: it lies outside the batch sizes {smallest:,} to {largest:,} that reached the "
            f"target. Add {side} batches."
        )
    return found


def _lack_of_fit(points: Sequence[StepsToTarget]) -> list[str]:
    """Whether an F test tells the curve from the means: a remark, since with enough seeds it tells every curve."""
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
    distance = times if ratio < math.inf else "told by seeds that agree with each other"
    return [
        f"the curve is not exact: its distance to the means is {distance}, most at batch {sizes[worst]:,} "
        f"({math.expm1(residuals[worst]):+.0%} steps). Its size decides whether that matters, and the verdict goes by "
        "size."
    ]


def _precision(points: Sequence[StepsToTarget], seen: Sequence[int]) -> list[str]:
    """What makes an estimate weak without making it wrong."""
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
        found.append("misfit cannot be told from the noise of seeds: there is one seed per batch size.")
    return found
