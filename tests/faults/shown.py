"""With which launchers, ranks and loading processes a test was shown: noted by what starts them, not declared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

PROPERTY = "shown"
Shown = tuple[str, int, int]
_properties: list[tuple[str, Any]] = []


def begin(user_properties: list[tuple[str, Any]]) -> None:
    """A test starts, whose report will carry what is noted from now on."""
    global _properties
    _properties = user_properties


def note(launcher: str, ranks: int, overrides: Sequence[str] = (), *, workers: int = 0) -> None:
    """Processes were started: by whom, how many ranks, with how many loading processes each."""
    for override in overrides:
        name, _, value = override.partition("=")
        if name == "data.num_workers":
            workers = int(value)
    if (entry := (PROPERTY, (launcher, ranks, workers))) not in _properties:
        _properties.append(entry)


def in_words(shown: Iterable[Shown]) -> str:
    """For instance `torchrun: 2 ranks, 2 workers; processes: 1, 2, 3 ranks`; without any entry, `this process`."""
    ranks, workers = defaultdict(set), defaultdict(set)
    for launcher, number, loading in shown:
        ranks[launcher].add(number)
        workers[launcher].add(loading)
    return "; ".join(_one(name, ranks[name], workers[name]) for name in sorted(ranks)) or "this process"


def _one(launcher: str, ranks: set[int], workers: set[int]) -> str:
    text = f"{launcher}: {_list(ranks)} rank{'s' * (ranks != {1})}"
    return text if workers == {0} else f"{text}, {_list(workers)} worker{'s' * (workers != {1})}"


def _list(numbers: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))
