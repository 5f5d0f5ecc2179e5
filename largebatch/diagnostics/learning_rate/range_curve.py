"""The learning-rate range test: one loss per step while the rate grows exponentially, and when to stop.

Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3; smoothing and the threshold of
four times the best loss as in fastai.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.smoothing import smooth

Array = npt.NDArray[np.float64]

_SPANS = 3  # a curve shorter than this many spans of its smoothing has no shape
HELD_STEPS = 16  # growth of 20 % a step is then 18-fold: no noise looks like that
_MAX_GROWTH = 1e10  # far from overflow in float32, where squares of gradients are summed


@dataclass(frozen=True)
class RangeSettings:
    """Which rates are tried, and when the loss counts as diverged.

    Attributes:
        lowest, highest: first and last rate; the steps between them have one ratio.
        num_steps: rates.
        smoothing: k in [0, 1) of the exponential mean, which looks over 1/(1 - k) steps.
        diverged_at: stop when the smoothed loss is this many times its best; above 1.

    Raises:
        ValueError: for a range without rates, or with fewer steps than three spans of the smoothing.

    >>> RangeSettings(lowest=0.01, highest=1.0, num_steps=3, smoothing=0.0).rates.round(12).tolist()
    [0.01, 0.1, 1.0]
    """

    lowest: float = 1e-5
    highest: float = 100.0
    num_steps: int = 100
    smoothing: float = 0.9
    diverged_at: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise ValueError(f"min={self.lowest:g}, max={self.highest:g}: rates grow, from above 0 to a finite max.")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing:g}: lies in [0, 1); 0 is none.")
        if not self.diverged_at > 1:
            raise ValueError(f"diverged_at={self.diverged_at:g}: a multiple of the best loss, above 1.")
        if self.num_steps < _SPANS * max(self.span, 1.0):
            raise ValueError(
                f"steps={self.num_steps}: smoothing={self.smoothing:g} looks over {self.span:g} steps, and a curve "
                f"needs {_SPANS} times as many. Use {math.ceil(_SPANS * self.span)} or more, or less smoothing."
            )

    @property
    def span(self) -> float:
        """Steps that the smoothing looks over; rounded, as 1 - 0.9 is not 0.1."""
        return round(1 / (1 - self.smoothing), 9)

    @property
    def rates(self) -> Array:
        """All rates, ascending, [num_steps]."""
        return np.geomspace(self.lowest, self.highest, self.num_steps)


@dataclass(frozen=True)
class RangeCurve:
    """What a range test saw.

    Attributes:
        settings: of the test.
        rates: that were used, [n].
        losses: mean loss over the batch of each step, before the step, [n]. The last may be inf or NaN.
        diverged: whether the test was stopped by the loss.
        held_losses: losses of further steps at the last rate, where `walk_rates` holds it, [m].
    """

    settings: RangeSettings
    rates: Array
    losses: Array
    diverged: bool
    held_losses: Array

    @property
    def smoothed(self) -> Array:
        """Exponential mean of the losses without bias, [n]; a last loss that is not finite has no weight."""
        return smooth(np.where(np.isfinite(self.losses), self.losses, np.nan), self.settings.span)

    @property
    def smoothed_rates(self) -> Array:
        """The rates that the smoothed losses belong to, [n]: log rates under the same mean.

        A smoothed loss lags behind by the age of what it is a mean of. So does this rate, and a straight line over log
        rates stays the same line.
        """
        return np.exp(smooth(np.log(self.rates), self.settings.span))


def walk_rates(take_step: Callable[[float], float], settings: RangeSettings, *, hold: bool = False) -> RangeCurve:
    """Take one step per rate until the loss diverges or the rates end.

    Args:
        take_step: takes an optimizer step with the given rate on the next batch, and returns the mean loss over this
            batch before the step. On several ranks all get the same number, so that all stop alike.
        settings: the rates and the rule.
        hold: after a divergence go on with the last rate for some steps: see `stability_limit`.
    """
    losses: list[float] = []
    diverged = False
    for rate in settings.rates:
        losses.append(float(take_step(float(rate))))
        if diverged := has_diverged(losses, settings):
            break
    rates = settings.rates[: len(losses)]
    held: list[float] = []
    while hold and diverged and len(held) < HELD_STEPS and _can_grow(losses[-1], held):
        held.append(float(take_step(float(rates[-1]))))
    return RangeCurve(settings, rates, np.array(losses), diverged, np.array(held))


def has_diverged(losses: Sequence[float], settings: RangeSettings) -> bool:
    """Whether the last loss ends the test: it is not finite, or the smoothed loss is far above its best.

    Far is `diverged_at - 1` times the size of the best smoothed loss, or times the spread of the losses if that is
    larger: a loss that noise takes to zero or below has no multiples.

    >>> settings = RangeSettings(smoothing=0.0)
    >>> [has_diverged([2.0, 2.0, 2.0, last], settings) for last in (7.9, 8.1, math.nan)]
    [False, True, True]
    """
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) < settings.span:
        return False  # of fewer nobody knows the spread
    raw = np.array(losses)
    smoothed = smooth(raw, settings.span)
    best = float(smoothed.min())
    return bool(smoothed[-1] > best + (settings.diverged_at - 1) * max(abs(best), loss_spread(raw)))


def loss_spread(losses: Array) -> float:
    """Standard deviation of a loss around its trend, from the differences of neighbours.

    The median of them counts, so that neither a trend nor a divergence makes it large: a normal difference lies within
    0.6745 sqrt(2) standard deviations of a loss half of the time.

    >>> round(loss_spread(np.random.default_rng(0).normal(0.0, 0.1, 1000) + np.arange(1000) / 1000), 2)
    0.1
    """
    steps = np.abs(np.diff(losses[np.isfinite(losses)]))
    return float(np.median(steps)) / (0.6745 * math.sqrt(2)) if len(steps) else 0.0


def _can_grow(first: float, held: Sequence[float]) -> bool:
    last = held[-1] if held else first
    return math.isfinite(last) and abs(last) < _MAX_GROWTH * max(abs(first), 1e-30)
