"""Critical batch sizes of one point of a run, from short branches of several batch sizes over the same samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.intervals import Interval

Array = npt.NDArray[np.float64]

LEAST_WINDOWS = 4  # Student's quantile of fewer is above 4
LEAST_SIZES = 3  # a parabola has three points
_LEVEL = 0.95
_SYMMETRIC = 1e-6  # skewness below which the correction is rounding
_PER_SEGMENT = 256  # places between two batch sizes at which the interval is looked at
_WORST = 10.0  # times threshold and spread: a loss above it counts as that much, so that one diverged branch is no mean


@dataclass(frozen=True)
class Crossing:
    """The batch size at which an expected loss passes a threshold, with its 95 % interval, in samples.

    Attributes:
        value: None: the mean of no measured batch size is past the threshold, or already that of the smallest.
        low: None: the interval goes on below the smallest batch size.
        high: None: the interval goes on above the largest batch size.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Branches:
    """Losses of branches: each consumes the same samples of a window from the same weights and optimizer state.

    Windows are replicates: other training samples, other evaluation samples. All branches of a window are evaluated on
    the same samples, so their differences are paired.

    Attributes:
        batch_sizes: of the branches, [K], ascending.
        losses: after all samples, [W, K]; not finite where a branch diverged.
        halfway: of the smallest batch size after half of the samples, [W].
        num_samples: of a window, N; a multiple of each batch size, and of twice the smallest one.

    Raises:
        ValueError: if shapes differ, there are too few windows or batch sizes, or the smallest batch diverged.
    """

    batch_sizes: tuple[int, ...]
    losses: Array
    halfway: Array
    num_samples: int

    def __post_init__(self) -> None:
        num_windows = len(self.losses)
        if self.losses.shape != (num_windows, len(self.batch_sizes)) or self.halfway.shape != (num_windows,):
            raise ValueError(
                f"losses {self.losses.shape} and halfway {self.halfway.shape}: W windows of {len(self.batch_sizes)} "
                "batch sizes have the shapes [W, K] and [W]."
            )
        if num_windows < LEAST_WINDOWS or len(self.batch_sizes) < LEAST_SIZES:
            raise ValueError(
                f"{num_windows} windows and {len(self.batch_sizes)} batch sizes: an interval needs {LEAST_WINDOWS} "
                f"windows, a curve {LEAST_SIZES} batch sizes."
            )
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)):
            raise ValueError(f"batch_sizes={list(self.batch_sizes)}: they must increase.")
        if not (np.isfinite(self._smallest).all() and np.isfinite(self.halfway).all()):
            raise ValueError(
                f"The branch of the smallest batch, {self.batch_sizes[0]}, diverged: there is nothing to compare with. "
                "Use a lower rate."
            )

    @property
    def _smallest(self) -> Array:
        return np.asarray(self.losses[:, 0])

    def rises(self) -> tuple[Array, Array, Array]:
        """Mean loss above that of the smallest batch, and the ends of its 95 % interval, all [K]."""
        return _mean_interval(self._capped(self.losses - self._smallest[:, None], 0.0))

    def tolerated(self, tolerance: float) -> Crossing:
        """The largest batch whose expected loss after these samples is at most `tolerance` above the smallest batch's.

        All smaller batches are within the tolerance, too. Between measured sizes the loss is a parabola through the
        nearest three. Source: Merrill et al. 2025 (arXiv 2505.23971), whose critical batch it is, on a grid and
        without an interval there.

        >>> losses = np.array([[1.0, 1.0, 1.2], [1.1, 1.1, 1.1], [1.2, 1.2, 1.6], [1.0, 1.0, 1.1]])
        >>> Branches((8, 16, 32), losses, np.full(4, 2.0), 64).tolerated(5.0)
        Crossing(value=None, low=32.0, high=None)
        """
        if not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance={tolerance}: must be positive.")
        differences = self.losses - self._smallest[:, None] - tolerance
        return _crossing(self.batch_sizes, self._capped(differences, tolerance))

    def doubling(self) -> Crossing:
        """B_crit: the batch that needs all N samples to the loss that the smallest batch has after N / 2.

        In E = E_min (1 + B / B_crit), McCandlish et al. 2018, equation 2.11, a batch of B_crit needs twice the samples
        of a very small one. Relative to a smallest batch B_0 that is not small it is B_crit + 2 B_0.
        """
        differences = self.losses - self.halfway[:, None]
        return _crossing(
            self.batch_sizes, self._capped(differences, abs(float((self.halfway - self._smallest).mean())))
        )

    def progress(self) -> Interval:
        """Mean fall of the smallest batch's loss over the second half of the samples."""
        value, low, high = _mean_interval((self.halfway - self._smallest)[:, None])
        return Interval(float(value[0]), float(low[0]), float(high[0]))

    def _capped(self, differences: Array, threshold: float) -> Array:
        worst = _WORST * (threshold + float(self._smallest.std(ddof=1)))
        return np.minimum(np.nan_to_num(differences, nan=np.inf, posinf=np.inf), worst)


def doubling_without_noise(smallest: int, rate_exponent: float) -> float:
    """What `doubling` finds where noise does not matter yet: a fact of the rates, not of the task.

    A branch then comes as far as the sum of its rates. With N samples in batches of B, each at the rate (B / B_0)^a,
    that is (B / B_0)^(a - 1) of what the smallest batch B_0 does: 1/2 of it at B = 2^(1 / (1 - a)) B_0. The linear
    rule, a = 1, loses nothing. Derived here.

    >>> doubling_without_noise(8, 0.5), doubling_without_noise(8, 0.0), doubling_without_noise(8, 1.0)
    (32.0, 16.0, inf)
    """
    return 2 ** (1 / (1 - rate_exponent)) * smallest if rate_exponent < 1 else math.inf


def _mean_interval(columns: Array) -> tuple[Array, Array, Array]:
    """Mean of each column and the ends of its 95 % interval, all [k].

    Student's interval with Hall's correction for skewness: the losses after few large steps are sums of few squares,
    and the plain interval of 8 windows misses the mean of one square in 15 % of cases, this one in 6.5 %.
    Source: Hall 1992, "On the removal of skewness by transformation", JRSS B 54, the monotone transformation.
    """
    from scipy.special import stdtrit

    count, mean = len(columns), columns.mean(axis=0)
    centred = columns - mean
    spread = np.sqrt((centred**2).sum(axis=0) / (count - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        biased = (centred**3).mean(axis=0) / (centred**2).mean(axis=0) ** 1.5
    skewness = np.nan_to_num(biased) * math.sqrt(count * (count - 1)) / (count - 2)
    quantile = float(stdtrit(count - 1, (1 + _LEVEL) / 2)) / math.sqrt(count)
    low, high = (mean - spread * _untransformed(end, skewness, count) for end in (quantile, -quantile))
    return mean, low, high


def _untransformed(end: float, skewness: Array, count: int) -> Array:
    """Solve for t: `end` = t + s t^2 / 3 + s^2 t^3 / 27 + s / (6 n), t = (mean - expectation) / deviation."""
    small = np.abs(skewness) < _SYMMETRIC
    s = np.where(small, 1.0, skewness)
    return np.where(small, end, 3 / s * (np.cbrt(1 + s * (end - s / (6 * count))) - 1))


def _crossing(batch_sizes: Sequence[int], differences: Array) -> Crossing:
    """Where the expected difference, [W, K], passes 0 for the first time.

    The interval inverts a test: it reaches from the first to the last batch size at which the interval of the mean
    difference includes 0. A parabola at a fixed place is a fixed weighted sum of the losses of a window, so the test
    there is that of a mean, and no error of a fitted curve enters. That of the parabola itself is left: it is small if
    neighbouring batch sizes differ by a factor of 1.5 at most.
    """
    sizes = np.array(batch_sizes, dtype=np.float64)
    between = [np.geomspace(*ends, _PER_SEGMENT, endpoint=False) for ends in itertools.pairwise(sizes)]
    places = np.concatenate([*between, sizes[-1:]])
    mean, least, most = _mean_interval(differences @ _parabolas(places, sizes).T)
    value, low = (_first_zero(places, one) for one in (mean, most))
    high = _first_zero(places[::-1], -least[::-1])
    smallest, largest = float(sizes[0]), float(sizes[-1])
    return Crossing(
        value if smallest < value < math.inf else None,
        min(low, largest) if low > smallest else None,
        None if high == largest else min(high, smallest) if math.isinf(high) else high,
    )


def _first_zero(places: Array, values: Array) -> float:
    """The first place at which values reach 0; infinity: none does."""
    past = np.flatnonzero(values >= 0)
    if not past.size or past[0] == 0:
        return float(places[0]) if past.size else math.inf
    after = int(past[0])
    (left, right), (below, above) = places[after - 1 : after + 1], values[after - 1 : after + 1]
    return float(left + (right - left) * -below / (above - below))


def _parabolas(places: Array, nodes: Array) -> Array:
    """Weights of the values at `nodes` in the parabola through the nearest three, [places, nodes]."""
    weights = np.zeros((len(places), len(nodes)))
    segment = np.clip(np.searchsorted(nodes, places, side="right") - 1, 0, len(nodes) - 2)
    first = np.clip(segment - 1, 0, len(nodes) - 3)
    rows = np.arange(len(places))
    for own in range(3):
        others = [number for number in range(3) if number != own]
        terms = [(places - nodes[first + one]) / (nodes[first + own] - nodes[first + one]) for one in others]
        weights[rows, first + own] = terms[0] * terms[1]
    return weights
