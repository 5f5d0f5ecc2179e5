"""Lengths of a run and of its parts, written as a number with a unit: `30ep`, `500steps`, `100000samples`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_UNITS = {"ep": "ep", "epoch": "ep", "epochs": "ep", "step": "steps", "steps": "steps"}
_UNITS |= {"sample": "samples", "samples": "samples"}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


@dataclass(frozen=True)
class Duration:
    """An amount of training. A run counts samples; epochs and steps are converted once the batch is known.

    >>> Duration.parse("2ep").samples(num_samples=100, global_batch_size=32)
    200
    >>> Duration.parse("3 steps").samples(num_samples=100, global_batch_size=32)
    96
    """

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `30ep`, `2.5 epochs`, `500steps` or `100000samples`.

        Raises:
            ValueError: if the number or the unit is missing or unknown, or a number of steps or samples is fractional.
        """
        match = _PATTERN.fullmatch(text)
        if match is None or match[2] not in _UNITS:
            raise ValueError("a length is a number and a unit. Write 30ep, 500steps or 100000samples.")
        amount, unit = Fraction(match[1]), _UNITS[match[2]]
        if unit != "ep" and amount.denominator != 1:
            raise ValueError(f"a number of {unit} is whole; only epochs may be fractions.")
        return cls(amount, unit)

    def samples(self, *, num_samples: int, global_batch_size: int) -> int:
        """The length in samples, for a training set of `num_samples`."""
        per_unit = {"ep": num_samples, "steps": global_batch_size, "samples": 1}[self.unit]
        return int(self.amount * per_unit)


def crosses_multiple(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` samples lies in (before, after], so that a periodic event is due in this step.

    >>> crosses_multiple(100, 64, 96), crosses_multiple(100, 96, 128), crosses_multiple(100, 68, 100)
    (False, True, True)
    """
    return after // every > before // every
