"""The runs that `largebatch advise` makes: which, in what order, with which config, and how long the next one takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from largebatch.optim import OptimizerGeometry
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.groups import grouped
from largebatch.records.report.reading import read_evidence
from largebatch.records.report.run_files import read_json
from largebatch.records.report.time_quantities import time_quantities
from largebatch.records.run_folder import RunFolder
from largebatch.run.train_quietly import Trained, train_quietly

_MOST_DOUBT = 2.0  # times the value: the interval of two runs may have no useful end
_ROWS = 20  # of metrics at least, in a run that has as many steps
_NOISE_ESTIMATES = 500  # of the noise scale at least, where there are as many steps: measuring costs little
_LEAST_WINDOW = 40  # newest of them that count: fewer give no interval to rely on


@dataclass(frozen=True)
class ShortRun:
    """A run to make.

    Attributes:
        batch: global, in samples.
        seed: of the run.
    """

    batch: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"batch{self.batch}_seed{self.seed}"


@dataclass(frozen=True)
class Spans:
    """What all runs have in common, whatever the batch; in samples.

    Attributes:
        total: of each run.
        warmup: of the schedule.
        geometry: that the noise scale is measured in: `optimizer` where its preconditioner is known.
    """

    total: int
    warmup: int
    geometry: str = "euclidean"


def geometry_of(optimizer: torch.optim.Optimizer) -> str:
    """The better one that the noise scale can be measured in, as observers.noise_scale.geometry."""
    try:
        OptimizerGeometry(optimizer)
    except ValueError:
        return "euclidean"
    return "optimizer"


def ordered(batch: int, sizes: Sequence[int], *, seed: int, seeds: int) -> list[ShortRun]:
    """The most telling first: the batch of the config, both ends, what lies between, then further seeds.

    >>> [(one.batch, one.seed) for one in ordered(64, [16, 32, 64, 128], seed=0, seeds=2)]
    [(64, 0), (16, 0), (128, 0), (32, 0), (64, 1), (16, 1), (128, 1)]
    """
    ends = [size for size in (min(sizes), max(sizes)) if size != batch]
    between = [size for size in sorted(sizes) if size != batch and size not in ends]
    first = [ShortRun(batch, seed), *(ShortRun(size, seed) for size in (*ends, *between))]
    more = [ShortRun(size, other) for other in range(seed + 1, seed + seeds) for size in (batch, *ends)]
    return [*first, *more]


def config_of(run: ShortRun, config: DictConfig, spans: Spans, *, keeps_middle: bool = False) -> DictConfig:
    """The config of a run: that of the plan with another batch and seed, over the same samples.

    Args:
        run: the run.
        config: of the plan.
        spans: what all runs have in common.
        keeps_middle: whether it keeps a checkpoint in mid run, `middle_checkpoint`.
    """
    config, steps = OmegaConf.create(config), spans.total // run.batch
    every = max(1, min(10, steps // _NOISE_ESTIMATES))
    changes: dict[str, Any] = {
        "batch.total": run.batch,
        "seed": run.seed,
        "run.name": run.name,
        "length": f"{spans.total}samples",
        "schedule.warmup": f"{spans.warmup}samples",
        "observers.evaluation.every": None,
        "observers.noise_scale.every": every,
        # The second half of the run: the noise scale grows by far at the start, and a trend leaves no interval.
        "observers.noise_scale.window": max(steps // every // 2, _LEAST_WINDOW),
        "observers.noise_scale.geometry": spans.geometry,
        "observers.metrics.every": max(1, min(10, steps // _ROWS)),
        "resume": "auto",
    }
    if keeps_middle:
        changes |= {"observers.checkpoint.every": f"{_middle(steps)}steps", "observers.checkpoint.keep": 2}
    with open_dict(config):
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
    return config


def _middle(steps: int) -> int:
    """Rounded up, so that its double is no step of the run: two checkpoints remain, this one and the last."""
    return max((steps + 1) // 2, 1)


def middle_checkpoint(run: ShortRun, folder: Path, spans: Spans) -> Path | None:
    """The checkpoint in mid run; None if it was not kept."""
    path = folder / "runs" / run.name / "checkpoints" / f"step_{_middle(spans.total // run.batch):08d}"
    return path if path.exists() else None


def make_run(run: ShortRun, config: DictConfig, folder: Path, stop: Callable[[], bool]) -> Trained:
    """Train it, or continue it where it was stopped, on all ranks of the launcher."""
    return train_quietly(config, folder / "runs" / run.name, stop=stop)


def is_finished(run: ShortRun, folder: Path) -> bool:
    """Whether its folder says so."""
    summary = RunFolder(folder / "runs" / run.name).summary
    try:
        return read_json(summary).get("status") in ("finished", "diverged")
    except (OSError, ValueError):
        return False


def has_two_sizes(folder: Path) -> bool:
    """Whether step times of two batch sizes are known: with fewer there is no answer, however little time is left."""
    return len({one.global_batch_size for one in read_evidence([folder / "runs"]).runs if one.step_s}) > 1


def expected_seconds(run: ShortRun, folder: Path, *, total: int, overheads: Sequence[float]) -> float | None:
    """How long a run takes at most by those before it: its steps times the upper end of the report's time of a step.

    Args:
        run: the next one.
        folder: of the advice.
        total: samples of a run.
        overheads: seconds that the runs before took besides their steps.

    Returns:
        None before the first run.
    """
    seconds = seconds_of({run.batch: total // run.batch}, folder)
    return None if seconds is None or not overheads else seconds + max(overheads)


def seconds_of(steps: Mapping[int, int], folder: Path) -> float | None:
    """How long steps of these batch sizes take at most, by the runs in the folder; None before the first one."""
    groups = grouped([one for one in read_evidence([folder / "runs"]).runs if one.step_s])
    if not groups:
        return None
    at, total = time_quantities(groups[0], Evidence(()), is_only=True)[0].at, 0.0
    for size, count in steps.items():
        step = at(size)
        if step.value is None:
            return None
        total += count * (step.value if step.high is None else min(step.high, _MOST_DOUBT * step.value))
    return total
