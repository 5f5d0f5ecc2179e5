"""Estimates at another batch size from measured runs: a value, its interval, and how it follows from the runs."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass

from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions import kinds

EXACT, MEASURED, INTERPOLATED, EXTRAPOLATED, NONE = (
    "exact",
    kinds.MEASURED,
    kinds.INTERPOLATED,
    kinds.EXTRAPOLATED,
    "no evidence",
)
kind_of = kinds.kind_of
MOST_SPREAD = 100.0  # upper end of an interval over its lower end
TOO_WIDE = f"not known: over {MOST_SPREAD:.0f}-fold"


@dataclass(frozen=True)
class Estimate:
    """A quantity at one batch size.

    Attributes:
        value: None where there is no evidence.
        low, high: 95 %; None: exact, or not known.
        kind: `exact`, `measured`, `interpolated`, `extrapolated` or `no evidence`.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = INTERPOLATED

    @property
    def is_too_wide(self) -> bool:
        """Whether its interval tells nothing."""
        return is_too_wide(self.low, self.high)


def is_too_wide(low: float | None, high: float | None) -> bool:
    """Whether the ends of an interval of a positive amount are more than a factor of `MOST_SPREAD` apart.

    Such an interval comes from too few runs, or too unequal ones, and is shown as not known. An end of 0 or less is
    that of an amount that may vanish: it is a bound from above, and no factor.

    >>> is_too_wide(1.0, 100.0), is_too_wide(1.0, 101.0), is_too_wide(1.7e-18, 3.9e16), is_too_wide(0.0, 5.0)
    (False, True, True, False)
    """
    return low is not None and high is not None and low > 0 and high > MOST_SPREAD * low


NOTHING = Estimate(None, kind=NONE)
AtBatch = Callable[[int], Estimate]


@dataclass(frozen=True)
class Quantity:
    """Something that depends on the batch size.

    Attributes:
        key: names its figure.
        label: the quantity.
        unit: the value's.
        source: the measurements and the assumption that it rests on.
        at: batch size -> estimate.
        measured: batch size -> measured value, drawn as points.
        log: whether its axis is logarithmic.
    """

    key: str
    label: str
    unit: str
    source: str
    at: AtBatch
    measured: Mapping[int, Interval]
    log: bool = False


def between(measured: Mapping[int, Interval]) -> AtBatch:
    """Linear in log batch size between neighbours, ends of intervals likewise; nothing outside.

    >>> at = between({16: Interval(1.0, 0.0, 2.0), 64: Interval(3.0, 2.0, 4.0)})
    >>> at(32)
    Estimate(value=2.0, low=1.0, high=3.0, kind='interpolated')
    >>> at(128)
    Estimate(value=None, low=None, high=None, kind='no evidence')
    """
    sizes = sorted(measured)

    def at(size: int) -> Estimate:
        if not sizes or not sizes[0] <= size <= sizes[-1]:
            return NOTHING
        right = bisect.bisect_left(sizes, size)
        ends = [measured[sizes[max(right - 1, 0)]], measured[sizes[right]]]
        if sizes[right] == size:
            share = 1.0
        else:
            share = math.log(size / sizes[right - 1]) / math.log(sizes[right] / sizes[right - 1])
        value, low, high = (
            first + share * (second - first) if share < 1 else second
            for first, second in ((getattr(ends[0], key), getattr(ends[1], key)) for key in ("value", "low", "high"))
        )
        return Estimate(value, known_end(low), known_end(high), kind_of(size, sizes))

    return at


def inverse_law(amount: Interval, measured: Sequence[int], *, plus: float = 0.0) -> AtBatch:
    """Plus + amount / B, extrapolated outside the batch sizes that the amount was measured at.

    >>> inverse_law(Interval(64.0, 32.0, 96.0), [16, 64], plus=1.0)(32)
    Estimate(value=3.0, low=2.0, high=4.0, kind='interpolated')
    """

    def at(size: int) -> Estimate:
        value, low, high = (plus + end / size for end in (amount.value, amount.low, amount.high))
        return Estimate(value, known_end(low), known_end(high), kind_of(size, measured))

    return at


def from_curve(curve: Mapping[str, Sequence[float | None]], *, s_min: float | None, b_crit: float | None) -> AtBatch:
    """Steps to a target from a study's fitted curve: log-log between its points; outside by its law, no interval.

    The law is steps = s_min (1 + b_crit / B).
    """
    unknown = [None] * len(curve["batch_size"])
    rows = zip(
        curve["batch_size"], curve["steps"], curve.get("low") or unknown, curve.get("high") or unknown, strict=False
    )
    known = {
        int(size): Interval(*(math.log(end) if end else math.nan for end in (steps, low, high)))
        for size, steps, low, high in rows
        if size and steps
    }
    inside = between(known)

    def at(size: int) -> Estimate:
        found = inside(size)
        if found.value is not None:
            low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
            return Estimate(math.exp(found.value), low, high, INTERPOLATED)
        if s_min is None or b_crit is None:
            return NOTHING
        return Estimate(s_min * (1 + b_crit / size), kind=EXTRAPOLATED)

    return at


def scaled(at: AtBatch, factor: Callable[[int], float]) -> AtBatch:
    """The estimate times a number that is known exactly."""

    def times(size: int) -> Estimate:
        one, by = at(size), factor(size)
        value, low, high = (None if end is None else by * end for end in (one.value, one.low, one.high))
        return Estimate(value, low, high, one.kind)

    return times


_WORSE = (EXACT, MEASURED, INTERPOLATED, EXTRAPOLATED, NONE)


def product(*factors: AtBatch, factor: float = 1.0) -> AtBatch:
    """The product of independent estimates and of a number that is known exactly.

    The logarithms add up, and with them the squares of their half widths, on either side. Where one interval is not
    known, that of the product is not either; of one that is exact the width is 0. The kind is the worst one.

    >>> wide = product(lambda size: Estimate(2.0, 1.0, 4.0), lambda size: Estimate(3.0, kind="exact"), factor=10.0)(8)
    >>> wide.value, round(wide.low, 9), round(wide.high, 9), wide.kind
    (60.0, 30.0, 120.0, 'interpolated')
    """

    def times(size: int) -> Estimate:
        found = [one(size) for one in factors]
        if any(one.value is None for one in found):
            return NOTHING
        value = factor * math.prod(one.value or 0.0 for one in found)
        kind = max((one.kind for one in found), key=_WORSE.index)
        halves = [(0.0, 0.0) if one.kind == EXACT else _log_halves(one) for one in found]
        if any(half is None for half in halves) or value <= 0:
            return Estimate(value, kind=kind)
        low, high = (math.hypot(*(half[end] for half in halves if half is not None)) for end in (0, 1))
        return Estimate(value, value * math.exp(-low), value * math.exp(high), kind)

    return times


def _log_halves(one: Estimate) -> tuple[float, float] | None:
    """Half widths of the interval on the logarithm, the lower one and the upper one."""
    if one.value is None or one.low is None or one.high is None or one.low <= 0:
        return None
    return math.log(one.value / one.low), math.log(one.high / one.value)


def spread(values: Sequence[float]) -> Interval:
    """Median and range; of one value the range is not known.

    >>> spread([1.0, 5.0, 2.0])
    Interval(value=2.0, low=1.0, high=5.0)
    """
    if len(values) == 1:
        return Interval(values[0], math.nan, math.nan)
    return Interval(statistics.median(values), min(values), max(values))


def no_quantity(key: str, label: str, unit: str, reason: str) -> Quantity:
    """A quantity without a measurement."""
    return Quantity(key, label, unit, reason, lambda size: NOTHING, {})


def count_of(runs: Sized) -> str:
    """The number of runs as text."""
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}"


def known_end(value: float) -> float | None:
    """None for NaN: an end of an interval that nobody knows."""
    return None if math.isnan(value) else value
