"""The likelihood of steps to a target over the batch size, S = S_min (1 + B_crit/B), and its profiles.

Steps scatter by factors, so the model is in logarithms (McCandlish et al. 2018, appendix A.3). The curve has two
parameters, a = log S_min and c = log B_crit; the spread of log S around it is a nuisance parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
# A quantity of interest minus a, as a function of c: 0 for log S_min, c for log E_min.
Shift = Callable[[Float64Array], Float64Array]

FAR = 20.0  # |c - log B| beyond which S(B) equals its limit to 2e-9: perfect scaling or no gain
_FLOOR = 1e-12  # smallest squared residual: steps exactly on a curve would have an infinite likelihood
_COARSE = 121  # grid points of the search for a minimum, before refinement
_FINER = np.linspace(0, 1, 25)
_MOST_STEPS = 60  # bisections from a range of some tens down to _EQUAL
_EQUAL = 1e-10  # tolerance in log variance; the deviance is flat at the minimum, so it is exact to rounding


def log_gain(c: Float64Array, log_sizes: Float64Array) -> Float64Array:
    """log(1 + B_crit/B) for c = log B_crit [...] and sizes [K] -> [..., K]."""
    return np.asarray(np.log1p(np.exp(np.asarray(c)[..., None] - log_sizes)))  # logaddexp takes five times as long


@dataclass(frozen=True)
class Hyperbola:
    """Gaussian log-likelihood of the medians of log steps, right-censored if a median was not reached.

    Attributes:
        log_sizes: log B, [K].
        log_steps: log S, or for a censored median the log of the steps without reaching the target, [K].
        weights: number of replicates per batch size, [K]; the variance of a median is sigma^2 / weight.
        censored: whether `log_steps` is only a lower bound, bool [K]; at least 3 are not censored.
    """

    log_sizes: Float64Array
    log_steps: Float64Array
    weights: Float64Array
    censored: npt.NDArray[np.bool_]

    @property
    def num_seen(self) -> int:
        """Number of batch sizes with a known median."""
        return int((~self.censored).sum())

    @property
    def range_of_c(self) -> tuple[float, float]:
        """Range of c outside which the curve does not change."""
        return float(self.log_sizes.min()) - FAR, float(self.log_sizes.max()) + FAR

    def deviance(self, a: Float64Array, c: Float64Array) -> Float64Array:
        """-2 log likelihood at the best sigma, up to a constant, for a [...] and c [...] -> [...]."""
        residuals = self.log_steps - np.asarray(a)[..., None] - log_gain(c, self.log_sizes)
        if not self.censored.any():
            squares = (self.weights * residuals**2).sum(axis=-1) / len(self.log_steps)
            return np.asarray(len(self.log_steps) * np.log(squares + _FLOOR))
        rows = [self._at_best_sigma(row) for row in residuals.reshape(-1, residuals.shape[-1])]
        return np.array(rows).reshape(residuals.shape[:-1])

    def _at_best_sigma(self, residuals: Float64Array) -> float:
        """Minimise by Newton's method in s = log sigma^2, with bisection if a step leaves the bracket."""
        from scipy.special import erfcx, log_ndtr

        scaled = residuals * np.sqrt(self.weights)
        seen, hidden = scaled[~self.censored], scaled[self.censored]
        count, squares = len(seen), float(seen @ seen) + _FLOOR * len(seen)
        s = math.log(squares / count)
        # A violated bound can only widen sigma, by at most its own residual.
        low, high = s - 1, max(s, math.log(squares + float(hidden @ hidden))) + 3
        for _ in range(_MOST_STEPS):
            x = hidden * math.exp(-s / 2)
            hazard = math.sqrt(2 / math.pi) / erfcx(x / math.sqrt(2))  # -d/dx of log P(Z > x)
            slope = count - squares * math.exp(-s) - float(hazard @ x)
            curvature = squares * math.exp(-s) + float(x @ (hazard + x * hazard * (hazard - x))) / 2
            low, high = (s, high) if slope < 0 else (low, s)
            following = s - slope / curvature if curvature > 0 else high
            before, s = s, following if low < following < high else (low + high) / 2
            if abs(s - before) < _EQUAL:
                break
        beyond = float(log_ndtr(-hidden * math.exp(-s / 2)).sum())
        return count * s + squares * math.exp(-s) - 2 * beyond - count

    def best(self, shift: Shift, value: float) -> tuple[float, float]:
        """The best c under the constraint a + shift(c) = `value`, and its deviance."""
        return self._least(lambda c: self._rough(value - shift(c), c), lambda c: self.deviance(value - shift(c), c))

    def best_of_all(self) -> tuple[float, float, float]:
        """a, c and deviance of the best curve."""
        c, deviance = self._least(
            lambda c: self._rough(self._best_a(c), c), lambda c: self._deviance_of_c(c)[1], tolerance=1e-7
        )
        return self._deviance_of_c(np.array(c))[0], c, deviance

    def deviance_of_c(self, c: float) -> float:
        """Deviance at the best a for this c."""
        return self._deviance_of_c(np.array(c))[1]

    def _deviance_of_c(self, c: Float64Array) -> tuple[float, float]:
        from scipy.optimize import minimize_scalar

        a = float(self._best_a(c))
        if not self.censored.any():
            return a, float(self.deviance(np.array(a), c))
        # Violated bounds lift the curve.
        found = minimize_scalar(lambda a: float(self.deviance(np.array(a), c)), bracket=(a, a + 0.1))
        return float(found.x), float(found.fun)

    def _best_a(self, c: Float64Array) -> Float64Array:
        """The best a by least squares over the uncensored medians."""
        weights = self.weights * ~self.censored
        return np.asarray((self.log_steps - log_gain(c, self.log_sizes)) @ weights / weights.sum())

    def _rough(self, a: Float64Array, c: Float64Array) -> Float64Array:
        """Sum of squares in which a bound counts only if the curve is below it; locates the minimum roughly."""
        residuals = self.log_steps - np.asarray(a)[..., None] - log_gain(c, self.log_sizes)
        if self.censored.any():
            residuals = np.where(self.censored, np.maximum(residuals, 0), residuals)
        return np.asarray(residuals**2 @ self.weights)

    def _least(
        self, rough: Shift, exact: Callable[[Float64Array], Float64Array | float], *, tolerance: float = 1e-4
    ) -> tuple[float, float]:
        """The minimum of `exact` over c and its value, searched near the minimum of `rough` on a grid.

        Without bounds `exact` is monotonic in `rough`, so refining the grid is enough.
        """
        from scipy.optimize import minimize_scalar

        grid = np.linspace(*self.range_of_c, _COARSE)
        place = int(np.argmin(rough(grid)))
        bounds = grid[max(place - 1, 0)], grid[min(place + 1, _COARSE - 1)]
        if not self.censored.any():
            while bounds[1] - bounds[0] > tolerance:
                grid = bounds[0] + (bounds[1] - bounds[0]) * _FINER
                place = int(np.argmin(rough(grid)))
                bounds = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
            return float(grid[place]), float(exact(grid[place]))
        found = minimize_scalar(
            lambda c: float(exact(np.array(c))), bounds=bounds, method="bounded", options={"xatol": tolerance}
        )
        end = grid[place] if place in (0, _COARSE - 1) else found.x
        return min(((float(c), float(exact(np.array(c)))) for c in (found.x, end)), key=lambda pair: pair[1])


def profile_interval(
    profile: Callable[[float], float], value: float, *, least: float, threshold: float, reach: float
) -> tuple[float, float]:
    """The points below and above `value` at which a profile deviance first rises by `threshold` over `least`.

    -inf or inf if it does not rise so far within `reach`.

    >>> low, high = profile_interval(lambda t: (t - 1) ** 2, 1.0, least=0.0, threshold=4.0, reach=50.0)
    >>> round(low, 4), round(high, 4)
    (-1.0, 3.0)
    """
    below, above = (_edge(profile, value, least + threshold, sign * reach) for sign in (-1, 1))
    return below, above


def _edge(profile: Callable[[float], float], value: float, level: float, reach: float) -> float:
    from scipy.optimize import brentq

    if profile(value) >= level:  # no noise except rounding
        return value
    inside, step = value, math.copysign(min(0.05, abs(reach)), reach)
    while abs(inside - value) < abs(reach):
        outside = inside + step
        if profile(outside) > level:
            return float(brentq(lambda t: profile(t) - level, inside, outside, xtol=1e-4))
        inside, step = outside, 2 * step
    return math.copysign(math.inf, reach)
