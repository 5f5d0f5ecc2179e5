"""The result of a study for one optimizer at one batch size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
from largebatch.diagnostics.intervals import Interval


@dataclass(frozen=True)
class StudyPoint:
    """Steps to the target of one optimizer at one batch size, after the same tuning as everywhere else.

    Attributes:
        optimizer: its name.
        measured: steps of every seed.
        by_seed: steps of each seed in the order of seeds; None where the target was not reached.
        setting: the best one, by key of the config.
        border: a sentence for each key whose best value lies at a border of its range.
        noise_scale: in samples, measured during the runs of the best setting; None if it was not, or drowned in noise.
        optimizer_noise_scale: the same in the optimizer's geometry; None too where that is the Euclidean one.
        trials: how many settings were tried.
        runs: folders of the runs of the best setting, relative to the study's.
    """

    optimizer: str
    measured: StepsToTarget
    by_seed: tuple[float | None, ...]
    setting: dict[str, Any] = field(default_factory=dict)
    border: tuple[str, ...] = ()
    noise_scale: Interval | None = None
    optimizer_noise_scale: Interval | None = None
    trials: int = 0
    runs: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int:
        """B, in samples."""
        return self.measured.batch_size
