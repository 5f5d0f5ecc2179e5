"""The settings that are tried: quasi-random over declared ranges, the same for every batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping

from largebatch.experiments.study.settings import RangeConfig

BORDER = 0.05  # of a range, on its own scale: a best value closer to an end may lie beyond it
Setting = dict[str, float]  # key of the config -> value


def draw_settings(ranges: Mapping[str, RangeConfig], count: int, *, seed: int) -> list[Setting]:
    """The first `count` points of a scrambled Halton sequence, stretched over the ranges.

    More points only add to the first ones. Shallue et al. 2019 draw theirs in the same way (Bousquet et al. 2017).

    >>> ranges = {"lr": RangeConfig(key="scaling.base_lr", low=0.01, high=100.0, scale="log")}
    >>> drawn = [setting["scaling.base_lr"] for setting in draw_settings(ranges, 2, seed=0)]
    >>> sorted(value > 1 for value in drawn)  # 1 is the middle of the range: one on each side
    [False, True]
    """
    from scipy.stats.qmc import Halton

    points = Halton(len(ranges), scramble=True, seed=seed).random(count)
    return [
        {one.key: _stretched(float(place), one) for place, one in zip(point, ranges.values(), strict=True)}
        for point in points
    ]


def borders(setting: Mapping[str, float], ranges: Mapping[str, RangeConfig]) -> tuple[str, ...]:
    """A sentence for each value in the outer 5 % of its range: a better one may lie beyond.

    >>> ranges = {"lr": RangeConfig(key="scaling.base_lr", low=0.01, high=1.0, scale="log")}
    >>> borders({"scaling.base_lr": 0.9}, ranges)
    ('scaling.base_lr=0.9 lies at the upper border of its range 0.01 to 1: widen it',)
    """
    found = []
    for one in ranges.values():
        value = setting[one.key]
        place = _place(value, one)
        if not BORDER <= place <= 1 - BORDER and not _is_natural_end(value, one):
            side = "lower" if place < BORDER else "upper"
            limits = f"{one.low:g} to {one.high:g}"
            found.append(f"{one.key}={value:.4g} lies at the {side} border of its range {limits}: widen it")
    return tuple(found)


def _is_natural_end(value: float, one: RangeConfig) -> bool:
    """Whether nothing lies beyond: there is no momentum below 0."""
    return one.scale == "one_minus_log" and one.low == 0 and _place(value, one) < BORDER


def _stretched(place: float, one: RangeConfig) -> float:
    """The value at a place of [0, 1) in a range."""
    low, high = _scaled(one.low, one), _scaled(one.high, one)
    at = low + place * (high - low)
    if one.scale == "linear":
        return at
    return math.exp(at) if one.scale == "log" else -math.expm1(-at)


def _place(value: float, one: RangeConfig) -> float:
    low, high = _scaled(one.low, one), _scaled(one.high, one)
    return (_scaled(value, one) - low) / (high - low)


def _scaled(value: float, one: RangeConfig) -> float:
    if one.scale == "linear":
        return value
    return math.log(value) if one.scale == "log" else -math.log1p(-value)
