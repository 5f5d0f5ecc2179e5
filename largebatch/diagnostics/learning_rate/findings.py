"""What the range tests of a batch size say together, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.learning_rate.range_curve import RangeCurve
from largebatch.diagnostics.learning_rate.stability import Momentum, stability_limit
from largebatch.diagnostics.learning_rate.suggestion import Reading, Suggestion, read_curve, scaling_exponent, suggest

Row = tuple[str, ...]
HEADERS = ("batch", "seed", "falls fastest", "lowest loss", "diverged", "a tenth of it", "stable below")


@dataclass(frozen=True)
class Found:
    """Range tests of one batch size.

    Attributes:
        global_batch_size: in samples.
        curves: by seed.
        readings: by seed.
        limits: largest stable rate by seed; None: not known.
        suggestion: of all seeds together.
    """

    global_batch_size: int
    curves: dict[int, RangeCurve]
    readings: dict[int, Reading]
    limits: dict[int, float | None]
    suggestion: Suggestion

    def rows(self) -> list[Row]:
        """One row per seed, as shown."""
        return [
            (
                f"{self.global_batch_size:,}",
                str(seed),
                *(_shown(rate) for rate in (one.steepest, one.minimum, one.divergence, one.tenth_of_divergence)),
                _shown(self.limits[seed]),
            )
            for seed, one in self.readings.items()
        ]

    def record(self) -> dict[str, Any]:
        """Numbers for JSON; what is not known or not finite is None. Columns end where the last seed ended."""
        longest = max(self.curves.values(), key=lambda curve: len(curve.rates))
        rates, smoothed = longest.rates, [curve.smoothed for curve in self.curves.values()]
        shortest = min(map(len, smoothed))
        mean = np.mean([values[:shortest] for values in smoothed], axis=0)
        lr = self.suggestion.lr
        suggested = None if lr is None else {"lr": lr.value, "low": _known(lr.low), "high": _known(lr.high)}
        return {
            "batch_size": self.global_batch_size,
            "suggestion": None if suggested is None else suggested | {"reason": self.suggestion.reason},
            "reason": self.suggestion.reason,
            "stability_limit": _interval(self.suggestion.limit),
            "lr": list(rates),
            "loss": {str(seed): _column(curve.losses, len(rates)) for seed, curve in self.curves.items()},
            "smoothed": _column(mean, len(rates)),
            "smoothed_lr": list(longest.smoothed_rates),
            "seeds": {
                str(seed): {
                    "steepest": one.steepest,
                    "minimum": one.minimum,
                    "divergence": one.divergence,
                    "stability_limit": self.limits[seed],
                    "problem": one.problem,
                    "held_losses": _column(self.curves[seed].held_losses, len(self.curves[seed].held_losses)),
                }
                for seed, one in self.readings.items()
            },
        }


def read_tests(global_batch_size: int, curves: dict[int, RangeCurve], momentum: Momentum | None) -> Found:
    """Read the curves of all seeds; limits are told where `momentum` is given."""
    readings = {seed: read_curve(curve) for seed, curve in curves.items()}
    limits = {seed: None if momentum is None else stability_limit(curve, momentum) for seed, curve in curves.items()}
    return Found(global_batch_size, curves, readings, limits, suggest(list(readings.values()), list(limits.values())))


def exponent_over_batches(found: Sequence[Found]) -> Interval | None:
    """Of the rates of steepest descent; see `scaling_exponent`."""
    return scaling_exponent(
        [
            (one.global_batch_size, reading.steepest)
            for one in found
            for reading in one.readings.values()
            if reading.steepest is not None
        ]
    )


def told(interval: Interval | None) -> str:
    """A value and its 95 % interval, as shown."""
    if interval is None:
        return "none"
    if not math.isfinite(interval.low):
        return f"{interval.value:.3g} (fewer than 3 seeds: no interval)"
    return f"{interval.value:.3g} (95 %: {interval.low:.3g} to {interval.high:.3g})"


def _shown(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.3g}"


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    return {"value": interval.value, "low": _known(interval.low), "high": _known(interval.high)}


def _column(values: np.ndarray, length: int) -> list[float | None]:
    return [_known(float(value)) for value in values] + [None] * (length - len(values))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
