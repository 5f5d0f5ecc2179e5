"""Further decays of a schedule: (samples since the warmup, samples from there to the end) -> factor in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

COOLDOWN_SHAPES = ("linear", "sqrt")


@dataclass(frozen=True)
class Cooldown:
    """The peak rate, then down in the last `samples`: warmup, stable, decay (WSD; Hu et al. 2024, MiniCPM).

    With q from 0 to 1 over the cooldown: `linear` 1 - q, `sqrt` 1 - sqrt(q) (Hagele et al. 2024, "1-sqrt").

    >>> [Cooldown(40, "linear")(since, 100) for since in (0, 60, 70, 100)]
    [1.0, 1.0, 0.75, 0.0]

    Raises:
        ValueError: for another shape, or in `check` for a cooldown of 0 samples or longer than the decay.
    """

    name: ClassVar[str] = "wsd"
    samples: int
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.shape not in COOLDOWN_SHAPES:
            raise ValueError(f"cooldown_shape={self.shape!r}: choose one of {', '.join(COOLDOWN_SHAPES)}.")

    def check(self, whole: int) -> None:
        """Raise ValueError if it does not fit into the `whole` samples after the warmup."""
        if not 1 <= self.samples <= whole:
            raise ValueError(
                f"A cooldown of {self.samples} samples, and {whole} come after the warmup: use 1 to {whole}."
            )

    def __call__(self, since: int, whole: int) -> float:
        """Factor at this place."""
        done = max(1 - (whole - since) / self.samples, 0.0)
        return 1 - (math.sqrt(done) if self.shape == "sqrt" else done)


@dataclass(frozen=True)
class Restarts:
    """Half a cosine down again and again, each `growth` times as long as the one before (Loshchilov and Hutter 2017).

    The first takes `samples`; the run may end inside a cycle.

    >>> [round(Restarts(40, growth=2)(since, 120), 6) for since in (0, 20, 40, 80, 120)]
    [1.0, 0.5, 1.0, 0.5, 0.0]

    Raises:
        ValueError: for a growth below 1, or in `check` for a cycle without a restart inside the run.
    """

    name: ClassVar[str] = "restarts"
    samples: int
    growth: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.growth < math.inf:
            raise ValueError(f"cycle_growth={self.growth}: each cycle is at least as long as the one before, >= 1.")

    def check(self, whole: int) -> None:
        """Raise ValueError if nothing restarts within the `whole` samples after the warmup."""
        if not 1 <= self.samples < whole:
            raise ValueError(
                f"A cycle of {self.samples} samples, and {whole} come after the warmup: nothing would restart. Use 1 "
                f"to {whole - 1}, or the decay cosine."
            )

    def __call__(self, since: int, whole: int) -> float:
        """Factor at this place."""
        start, length = 0.0, float(self.samples)
        while start + length <= since and start + length < whole:  # the last sample ends its cycle
            start, length = start + length, length * self.growth
        return (1 + math.cos(math.pi * (since - start) / length)) / 2


@dataclass(frozen=True)
class InverseSqrt:
    """sqrt(t / (t + samples since the warmup)); with t the warmup, as in Vaswani et al. 2017: sqrt(warmup / samples).

    It never reaches its end, so a run may be as long as one likes.

    >>> [InverseSqrt(25)(since, 100) for since in (0, 75)]
    [1.0, 0.5]

    Raises:
        ValueError: for a t below 1.
    """

    name: ClassVar[str] = "inverse_sqrt"
    samples: int

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(
                f"timescale={self.samples} samples: the rate falls from the first sample on. Use 1 or more, or a "
                "warmup, whose length is the default."
            )

    def __call__(self, since: int, whole: int) -> float:
        """Factor at this place."""
        return math.sqrt(self.samples / (self.samples + since))
