"""Quantiles and chances without scipy: a run that predicts itself must not wait for its import."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

_TINY, _SETTLED, _MOST_TERMS, _HALVINGS, _NARROW = 1e-300, 1e-15, 10_000, 1000, 1e-13
_LARGEST = 700.0  # exponent whose power of e is a number


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0 and x from 0 to 1.

    By its continued fraction (Abramowitz and Stegun 1964, 26.5.8), evaluated from the front by Lentz's method, on the
    side where it converges fast: I_x(a, b) = 1 - I_(1 - x)(b, a).

    >>> round(incomplete_beta(1.0, 1.0, 0.3), 12), round(incomplete_beta(2.0, 1.0, 0.3), 12)  # x, x^2
    (0.3, 0.09)
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return front * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """1 / (1 + d_1 / (1 + d_2 / (1 + ...)))."""
    top, bottom = 1.0, 1.0 / _nonzero(1 - (a + b) * x / (a + 1))
    value = bottom
    for m in range(1, _MOST_TERMS):
        for d in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            bottom, top = 1.0 / _nonzero(1 + d * bottom), _nonzero(1 + d / top)
            value *= bottom * top
        if abs(bottom * top - 1) < _SETTLED:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


@cache
def student_quantile(freedom: float, share: float = 0.975) -> float:
    """The t that Student's distribution stays below with a chance of `share`, 0.5 or more; freedom may be a fraction.

    >>> round(student_quantile(1.0), 4), round(student_quantile(2.0), 4)  # tan(0.475 pi)
    (12.7062, 4.3027)
    """
    tail = 2 * (1 - share)
    # P(|T| > t) = I_x(n / 2, 1 / 2) with x = n / (n + t^2) (Abramowitz and Stegun 1964, 26.7.1).
    x = _root(lambda x: incomplete_beta(freedom / 2, 0.5, x), tail)
    return math.sqrt(freedom * (1 - x) / x)


def f_chance(ratio: float, freedom: float, freedom_below: float) -> float:
    """The chance that an F ratio of these freedoms is smaller (Abramowitz and Stegun 1964, 26.6.2).

    >>> round(f_chance(1.0, 7.0, 7.0), 9)
    0.5
    """
    return incomplete_beta(freedom / 2, freedom_below / 2, freedom * ratio / (freedom * ratio + freedom_below))


def beta_quantile(a: float, b: float, share: float) -> float:
    """The x with I_x(a, b) = share.

    >>> round(beta_quantile(2.0, 1.0, 0.25), 9)
    0.5
    """
    return _root(lambda x: incomplete_beta(a, b, x), share)


def e_to(exponent: float) -> float:
    """e^exponent; infinite, and no OverflowError, where it is larger than any number: an end that is not known.

    >>> e_to(0.0), e_to(1e6)
    (1.0, inf)
    """
    return math.exp(exponent) if exponent < _LARGEST else math.inf


def _root(rising: Callable[[float], float], value: float) -> float:
    """Where a function that rises from 0 to 1 takes a value, by halving on the logarithm, then plainly."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high) if low > 0 and high / low > 4 else (low + high) / 2
        if high - low <= _NARROW * high:
            break
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2
