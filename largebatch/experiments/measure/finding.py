"""What a measurement of `largebatch measure` gives back, and how it comes to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.experiments.measure.weights import Weights
from largebatch.run.config.reading import ConfigError


class NotMeasurableError(ConfigError):
    """What is asked for does not exist for this loss or this number of processes; `measure all` says so and goes on."""


@dataclass(frozen=True)
class Finding:
    """A result, for people and for programs.

    Attributes:
        title: of the table: what was measured, on what.
        headers: of the columns.
        rows: cells as shown.
        record: the numbers, ready for JSON.
        draw: pictures into a folder; returns them. Called when the numbers are shown and written.
    """

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    record: dict[str, Any]
    draw: Callable[[Path], Sequence[Path]]


# Measures on all ranks together; None on every rank but 0. Made before any process group, where wrong input is refused.
Measurement = Callable[[Weights], Finding | None]
