"""Amounts of memory as text, and the largest micro-batch that fits into one. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """Bytes of an amount such as "80GiB", "79.6 GiB" or "85GB".

    Raises:
        ValueError: if it is no amount, has no unit, or an unknown one.

    >>> parse_bytes("80GiB"), parse_bytes("1.5 GB")
    (85899345920, 1500000000)
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no amount of memory. Write a number and a unit, such as 80GiB.")
    number, unit = match.groups()
    known = {name.lower(): size for name, size in _UNITS.items()}
    if unit.lower() not in known:
        fact = f"{unit!r} is no unit of memory" if unit else f"{text!r} has no unit"
        raise ValueError(f"{fact}: GiB are 2^30 bytes, GB 10^9. Use one of {', '.join(_UNITS)}, such as {number}GiB.")
    if not (num_bytes := round(float(number) * known[unit.lower()])):
        raise ValueError(f"{text!r} is no memory. Write more than 0, such as 80GiB.")
    return num_bytes


def shown_bytes(num_bytes: float) -> str:
    """An amount with three digits and a binary unit.

    >>> shown_bytes(0), shown_bytes(1536), shown_bytes(5.67 * 2**30), shown_bytes(80 * 2**30)
    ('0 B', '1.5 KiB', '5.67 GiB', '80 GiB')
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes >= _UNITS[unit]:
            amount = num_bytes / _UNITS[unit]
            return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def largest_that_fits(
    peak_of: Callable[[int], int], budget: int, *, known: dict[int, int], per_sample: float, most: int
) -> int:
    """The largest size of at most `most` whose peak is within `budget`; 0 if not even 1 is.

    Memory is nearly a line in the size, so each next size lies on the line through the two known ones that are nearest
    to the budget. What is returned has been computed, and so has the size above it, which does not fit.

    Args:
        peak_of: size -> bytes; grows with the size.
        budget: bytes.
        known: size -> bytes of at least one size of at most `most`; gets all others that are computed.
        per_sample: first guess of how it grows, bytes.
        most: largest size that is of use.

    >>> known = {10: 110}
    >>> largest_that_fits(lambda size: 10 * size + 10, 1000, known=known, per_sample=9.0, most=10**6), sorted(known)
    (99, [10, 99, 100, 108])
    """
    while True:
        fit = max((size for size, peak in known.items() if peak <= budget), default=0)
        misfit = min((size for size, peak in known.items() if peak > budget), default=most + 1)
        if misfit - fit <= 1:
            return fit
        size = min(max(_on_the_line(known, per_sample, budget), fit + 1), misfit - 1)
        known[size] = peak_of(size)


def _on_the_line(known: dict[int, int], slope: float, budget: int) -> int:
    """The size that would fill the budget."""
    one, *others = sorted(known, key=lambda size: abs(known[size] - budget))
    if others:
        slope = (known[one] - known[others[0]]) / (one - others[0])
    return int(one + (budget - known[one]) / slope) if slope > 0 else 2 * max(known)
