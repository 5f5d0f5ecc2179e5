"""A cooldown that branches off a trunk: one long run at a high rate, and from any place of it a run that ends well."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from largebatch.batch.decays import Cooldown
from largebatch.batch.schedule import Schedule


@dataclass(frozen=True)
class CooledTrunk:
    """The decay of a branch: the trunk's up to `start`, then the rate that it had there, times the cooldown.

    The arithmetic is that of `Cooldown` within a schedule that ends at `start + cooldown.samples`. So a trunk at its
    peak rate and its cooldown have the factors of one run with the decay wsd, bit for bit.

    Attributes:
        trunk: schedule of the run that the branch leaves.
        start: samples seen at which it leaves it; not within the trunk's warmup.
        cooldown: its length and shape.
        end_factor: of the rate at `start`, at the end.

    Raises:
        ValueError: for a start inside the warmup or beyond the trunk's end, a trunk whose rate is 0 there, an end
            factor outside [0, 1), or a cooldown without samples.
    """

    name: ClassVar[str] = "cooldown"
    trunk: Schedule
    start: int
    cooldown: Cooldown
    end_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.start < self.trunk.warmup_samples:
            raise ValueError(
                f"A cooldown from {self.start:,} samples: the warmup lasts until {self.trunk.warmup_samples:,}, and a "
                "rate that still rises cannot be cooled down. Take a later checkpoint."
            )
        if self.start > self.trunk.total_samples:
            raise ValueError(
                f"A cooldown from {self.start:,} samples: the trunk has {self.trunk.total_samples:,}. Give the length "
                "that the trunk was started with."
            )
        if self.trunk(self.start) == 0:
            raise ValueError(
                f"A cooldown from {self.start:,} samples: the trunk's rate is 0 there. Take an earlier checkpoint."
            )
        if not 0 <= self.end_factor < 1 or self.cooldown.samples < 1:
            raise ValueError(
                f"end_factor={self.end_factor}, {self.cooldown.samples} samples: a cooldown has 1 sample or more and "
                "ends below the rate from which it starts, at a factor from 0 to less than 1."
            )

    def __call__(self, since: int, whole: int) -> float:
        """Factor at this place; see `Decay`."""
        samples_seen = since + self.trunk.warmup_samples
        if samples_seen < self.start:
            return self.trunk(samples_seen)
        shape = self.end_factor + (1 - self.end_factor) * self.cooldown(since, whole)
        return self.trunk(self.start) * shape


def cooled_from(
    trunk: Schedule, start: int, *, samples: int, shape: str = "linear", end_factor: float = 0.0
) -> Schedule:
    """The schedule of a branch: `trunk` up to `start`, then down in `samples`.

    >>> trunk = Schedule(total_samples=1000, warmup_samples=10, decay="constant")
    >>> branch = cooled_from(trunk, 60, samples=40)
    >>> branch.total_samples, [branch(samples) for samples in (0, 10, 60, 80, 100)]
    (100, [0.0, 1.0, 1.0, 0.5, 0.0])

    Raises:
        ValueError: see `CooledTrunk`.
    """
    decay = CooledTrunk(trunk, start, Cooldown(samples, shape), end_factor)
    total = start + samples
    return dataclasses.replace(trunk, total_samples=total, decay=decay, end_factor=0.0, step_samples=())
