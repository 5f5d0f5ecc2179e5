"""`largebatch bench WHAT`: measurements on this machine, against a rival in the same process or a planted defect."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from largebatch.commands.choices import show_choices

BENCHES = {
    "loop": "our training loop against a hand-written DDP loop, on the model, data and batch of the config",
    "diagnostics": "our loop with the noise scale or communication measured against without, on the same",
    "verify": "false alarms and missed defects of `largebatch verify`, over models, optimizers and seeds",
    "rows": "memory and time of `report`, `compare`, `ledger` and a resume on runs of a million rows",
    "optim": "a step of LAMB and LARS against torch's fused AdamW and SGD, and other packages that are installed",
}


def main(arguments: Sequence[str]) -> int:
    """`bench loop|diagnostics|optim|rows|verify [KEY=VALUE ...]`. Returns the exit code."""
    if arguments and arguments[0] in BENCHES:
        bench = importlib.import_module(f"largebatch.commands.bench_{arguments[0]}")
        return int(bench.main(arguments[1:]))
    return show_choices("bench", BENCHES, arguments)


def key_values(arguments: Sequence[str], values: Mapping[str, Callable[[str, str], Any]]) -> dict[str, Any]:
    """The values of `KEY=VALUE` arguments, each read by its function of key and text.

    Raises ValueError for the first one that is wrong.

    >>> key_values(["rounds=7"], {"rounds": at_least(5)})
    {'rounds': 7}
    """
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value or key not in values:
            raise ValueError(f"{argument!r}: an argument is KEY=VALUE with KEY one of {', '.join(values)}.")
        if key in given:
            raise ValueError(f"{key} is given twice. Give it once.")
        given[key] = values[key](key, value)
    return given


def some_of(known: Sequence[str]) -> Callable[[str, str], tuple[str, ...]]:
    """Reads names with commas between them."""

    def names(key: str, text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if wrong := [name for name in found if name not in known]:
            raise ValueError(f"{key}={text}: {wrong[0]!r} is not known. Name one or more of {', '.join(known)}.")
        return found

    return names


def at_least(least: int) -> Callable[[str, str], int]:
    """Reads a whole number."""

    def number(key: str, text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"{key}={text}: a whole number, {least} or more.")
        return int(text)

    return number


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from n ascending independent values: the order statistics n/2 -+ 0.98 sqrt(n).

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2 (normal approximation of the binomial).

    >>> median_interval([float(value) for value in range(100)])
    (40.0, 59.0)
    """
    half_width = 0.98 * math.sqrt(len(ordered))
    first = max(math.ceil(len(ordered) / 2 - half_width) - 1, 0)
    return ordered[first], ordered[-first - 1]
