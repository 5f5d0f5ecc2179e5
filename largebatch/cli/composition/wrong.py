"""An error of a command line, with the arguments that it is about: without them, the others can be checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Wrong:
    """One error.

    Attributes:
        arguments: that are wrong, as typed; empty if a file is.
        text: fact, rule, remedy.
    """

    arguments: tuple[str, ...]
    text: str


def without(arguments: Sequence[str], wrong: Iterable[Wrong]) -> list[str]:
    """The arguments that no error is about.

    >>> without(["seed", "3", "length=1ep"], [Wrong(("seed", "3"), "seed 3: write seed=3.")])
    ['length=1ep']
    """
    left = list(arguments)
    for one in wrong:
        for argument in one.arguments:
            if argument in left:
                left.remove(argument)
    return left
