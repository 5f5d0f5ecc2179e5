"""Runs that reach a target: what each took and how it generalizes there, from its own records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.records.figures.optimizer_names import optimizer_name
from largebatch.records.report.cost_quantities import cost_of, measured_watts
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.run_files import read_run

_HOUR, _KWH = 3600.0, 3.6e6  # seconds; joules


@dataclass(frozen=True)
class TargetRun:
    """A run, or what is known of it.

    Attributes:
        optimizer: its name for people.
        batch_size: B.
        seed: runs of one seed count as one value.
        steps: to the target; None: not reached.
        step_s: time of a step; None: not known.
        ranks: processes.
        device_hour, watts: price of an hour, and power, of a device; None: not known.
        val_loss, loss_gap: at the target; None: not measured.
        resolution: by which share the steps may be too large, because the target was reached between two evaluations;
            infinite: the first one had passed it.
        nearest: value of the metric that came nearest to the target, or passed it by most; None: not known.
    """

    optimizer: str
    batch_size: int
    seed: object
    steps: float | None
    step_s: float | None = None
    ranks: int = 1
    device_hour: float | None = None
    watts: float | None = None
    val_loss: float | None = None
    loss_gap: float | None = None
    resolution: float = 0.0
    nearest: float | None = None

    @property
    def samples(self) -> float | None:
        """B times steps."""
        return None if self.steps is None else self.steps * self.batch_size

    @property
    def seconds(self) -> float | None:
        """Steps times the time of a step: evaluations, checkpoints and the start are not in it."""
        return None if self.steps is None or self.step_s is None else self.steps * self.step_s

    @property
    def price(self) -> float | None:
        """Of all devices for that time."""
        known = self.seconds is not None and self.device_hour is not None
        return self.seconds * self.ranks * self.device_hour / _HOUR if known else None  # type: ignore[operator]

    @property
    def energy(self) -> float | None:
        """Of all devices for that time, in kWh."""
        known = self.seconds is not None and self.watts is not None
        return self.seconds * self.ranks * self.watts / _KWH if known else None  # type: ignore[operator]


def runs_of_study(
    points: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    resolution: float,
    read: Callable[[Path], RunRecord] = read_run,
) -> list[TargetRun]:
    """The final runs of a study; the end of a run is the evaluation that reached the target.

    Args:
        points: of study.json.
        folder: of the study.
        resolution: distance of its evaluations, as a share of the steps.
        read: reads a run; one that cannot be read has steps, and no times.
    """
    found = []
    for point in points:
        optimizer, size = optimizer_name(str(point["optimizer"])), int(point["batch_size"])
        folders: Sequence[str | None] = point.get("runs") or [None] * len(point["steps"])
        for seed, (steps, run) in enumerate(zip(point["steps"], folders, strict=True)):
            reached = None if steps is None else float(steps)
            bare = TargetRun(optimizer, size, seed, reached, resolution=resolution)
            record = None if run is None else _read(folder / run, read)
            at_end = {} if record is None else {key: record.last(key) for key in ("eval/val_loss", "gap/loss")}
            found.append(bare if record is None else _with_costs(bare, record, at_end))
    return found


def run_to_target(record: RunRecord, metric: str, target: float) -> TargetRun:
    """A run of `largebatch train`, up to its first evaluation at the target, or beyond."""
    steps, values = record.series(metric, against="step")
    seed, is_loss = record.settings.get("seed", str(record.folder)), metric.endswith("loss")
    reached = np.flatnonzero(values <= target if is_loss else values >= target)
    finite = values[np.isfinite(values)]
    nearest = float(finite.min() if is_loss else finite.max()) if finite.size else None
    if not reached.size:
        missed = TargetRun(record.optimizer, record.global_batch_size, seed, None, nearest=nearest)
        return _with_costs(missed, record, {})
    step = float(steps[reached[0]])
    before = float(steps[reached[0] - 1]) if reached[0] else 0.0
    resolution = (step - before) / before if before else math.inf
    bare = TargetRun(record.optimizer, record.global_batch_size, seed, step, resolution=resolution, nearest=nearest)
    return _with_costs(bare, record, {key: _value_at(record, key, step) for key in ("eval/val_loss", "gap/loss")})


def _value_at(record: RunRecord, key: str, step: float) -> float | None:
    steps, values = record.series(key, against="step")
    there = values[steps == step]
    return float(there[-1]) if len(there) else None


def _with_costs(bare: TargetRun, record: RunRecord, at_target: Mapping[str, float | None]) -> TargetRun:
    cost = cost_of([record])
    return replace(
        bare,
        step_s=record.step_s,
        ranks=record.world_size,
        device_hour=cost.device_hour,
        watts=measured_watts(record) or cost.device_watts,
        val_loss=at_target.get("eval/val_loss"),
        loss_gap=at_target.get("gap/loss"),
    )


def _read(folder: Path, read: Callable[[Path], RunRecord]) -> RunRecord | None:
    try:
        return read(folder)
    except (OSError, ValueError):
        return None
