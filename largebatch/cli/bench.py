"""`largebatch bench WHAT`: measurements on this machine, against a rival in the same process or a planted defect."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from largebatch.cli.composition.choices import show_choices

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
        bench = importlib.import_module(f"largebatch.cli.bench_{arguments[0]}")
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
