"""One run of a study: it trains until the target is reached, the budget is used, or it cannot win any more."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from largebatch.experiments.study.protocol import REACHED, Job, Row
from largebatch.experiments.study.settings import StudyConfig, TargetConfig
from largebatch.gradient.step import Measures, Step
from largebatch.records.figures.run_metrics import NOISE_SCALE, OPTIMIZER_NOISE_SCALE
from largebatch.records.rows.placed_rows import Faults, placed_rows
from largebatch.records.run_folder import RunFolder
from largebatch.run.config.reading import ConfigError
from largebatch.run.train_quietly import Trained, train_quietly
from largebatch.training.loop import Observer, Run
from largebatch.training.observers import EvaluationObserver
from largebatch.training.step_report import StepReport


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes:
        status: reached, budget (used without the target), beaten (cannot win any more), hopeless, or diverged.
        steps: optimizer steps at the evaluation that decided it.
        before: steps at the evaluation before, where the target was not reached.
        value: the metric there; None if it is not finite.
    """

    status: str
    steps: int
    before: int
    value: float | None


class TargetObserver(Observer):
    """Evaluates more and more rarely, each time after at most `resolution` more steps, and judges the run.

    Args:
        target: the metric and value to reach.
        resolution: relative distance of evaluations.
        beaten_at: steps at which the run has lost; None: it has not.
        hopeless_after: steps after which a run that is no better than untrained ends; None: it does not.

    Attributes:
        verdict: None while the run goes on.
    """

    def __init__(
        self, target: TargetConfig, *, resolution: float, beaten_at: int | None, hopeless_after: float | None
    ) -> None:
        self.verdict: Verdict | None = None
        self._target = target
        self._resolution = resolution
        self._beaten_at = beaten_at
        self._hopeless_after = hopeless_after
        self._last = 0
        self._next = 1

    def asks(self, step: Step) -> Measures:
        """The loss of every step, so that a verdict ends the run one step later, not at the next row of metrics."""
        return Measures.LOSS

    def on_start(self, run: Run) -> bool:
        """Evaluate the untrained model, the yardstick of hopelessness."""
        self._evaluation = next(one for one in run.observers if isinstance(one, EvaluationObserver))
        self._untrained = self._measured(run)
        if self._target.is_reached(self._untrained):
            raise ConfigError(
                [
                    f"study.target.value={self._target.value:g}: {self._target.metric} is {self._untrained:.4g} before "
                    "any training. Choose a harder target."
                ]
            )
        return self._evaluation.is_owed

    def after_step(self, run: Run, report: StepReport) -> bool:
        """Evaluate, if it is time."""
        if self.verdict is not None or (report.step < self._next and not report.taken.is_last):
            return False
        value = self._measured(run)
        if self._evaluation.is_owed:  # it broke off
            return True
        status = self._status(report.step, value, is_last=report.taken.is_last)
        if status is not None:
            self.verdict = Verdict(status, report.step, self._last, value if math.isfinite(value) else None)
        self._last, self._next = report.step, report.step + max(1, math.floor(self._resolution * report.step))
        if self._beaten_at is not None and report.step < self._beaten_at:
            self._next = min(self._next, self._beaten_at)
        return False

    def on_end(self, run: Run, status: str) -> None:
        """A loss that is not finite ends a run by itself."""
        if status == "diverged" and self.verdict is None:
            self.verdict = Verdict("diverged", run.progress.step, self._last, None)

    def _measured(self, run: Run) -> float:
        """The target's metric; not a number if the study was asked to stop meanwhile."""
        row = self._evaluation.measure(run)
        return math.nan if row is None else float(row[self._target.metric])

    def _status(self, step: int, value: float, *, is_last: bool) -> str | None:
        if not math.isfinite(value):
            return "diverged"
        if self._target.is_reached(value):
            return REACHED
        if self._beaten_at is not None and step >= self._beaten_at:
            return "beaten"
        if is_last:
            return "budget"
        late = self._hopeless_after is not None and step >= self._hopeless_after
        return "hopeless" if late and not self._target.is_better(value, self._untrained) else None


def run_job(job: Job, config: DictConfig, study: StudyConfig, folder: Path, stop: Callable[[], bool]) -> Row | None:
    """Train a run of a study; returns its row of trials.jsonl, or None if it was stopped from outside.

    Args:
        job: the run to make.
        config: of `largebatch train` for its optimizer.
        study: the section `study`.
        folder: the study's; the run goes to runs/NAME.
        stop: whether to end now.
    """
    started = time.perf_counter()
    relative = f"runs/{job.name}"
    shutil.rmtree(folder / relative, ignore_errors=True)  # of a run that was killed
    # Only tuning stops hopeless runs: the runs that count use the whole budget.
    hopeless_after = None if study.hopeless is None or not job.is_tuning else study.hopeless * job.cell.budget_steps
    watch = TargetObserver(
        study.target, resolution=study.resolution, beaten_at=job.beaten_at, hopeless_after=hopeless_after
    )
    trained = train_quietly(
        config_of(job, config),
        folder / relative,
        observers=[watch],
        stop=lambda: watch.verdict is not None or stop(),
    )
    shutil.rmtree(trained.folder / "checkpoints", ignore_errors=True)
    if watch.verdict is None:
        return None
    return _row(job, watch.verdict, trained, relative) | {"seconds": round(time.perf_counter() - started, 3)}


def config_of(job: Job, config: DictConfig) -> DictConfig:
    """The config of a run; the noise scale is measured where steps count, not in the tuning."""
    config = OmegaConf.create(config)
    changes: dict[str, Any] = {
        "batch.total": job.cell.batch_size,
        "seed": job.seed,
        "run.name": job.name,
        **job.setting,
    }
    changes |= {"observers.evaluation.every": None, "observers.checkpoint.every": None, "resume": "none"}
    if job.is_tuning:
        changes |= {"observers.noise_scale.every": None, "observers.noise_scale.geometry": "euclidean"}
    with open_dict(config):
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
    return config


def _row(job: Job, verdict: Verdict, trained: Trained, relative: str) -> Row:
    return {
        "id": job.name,
        "cell": job.cell.name,
        "optimizer": job.cell.optimizer,
        "batch_size": job.cell.batch_size,
        "number": job.number,
        "seed": job.seed,
        "phase": "tuning" if job.is_tuning else "final",
        "setting": job.setting,
        "status": verdict.status,
        "steps": verdict.steps,
        "steps_before": verdict.before,
        "value": verdict.value,
        "budget_steps": job.cell.budget_steps,
        **_noise_scales(trained),
        "run": relative,
    }


_ENDS = ("value", "low", "high")
# Key in a row of trials.jsonl -> keys in metrics.jsonl; in the optimizer's geometry only where it was asked for.
_NOISE_SCALES = {
    "noise_scale": NOISE_SCALE.keys,
    "optimizer_noise_scale": OPTIMIZER_NOISE_SCALE.keys,
}


def _noise_scales(trained: Trained) -> dict[str, dict[str, float] | None]:
    """The last one with an interval, in each geometry."""
    found: dict[str, dict[str, float] | None] = {"noise_scale": None}
    if not (metrics := RunFolder(trained.folder).metrics).exists():
        return found
    for _, _, _, row in placed_rows(metrics, Faults()):
        for name, keys in _NOISE_SCALES.items():
            values = [row.get(key) for key in keys]
            if all(isinstance(value, float) and math.isfinite(value) for value in values):
                found[name] = dict(zip(_ENDS, values, strict=True))  # type: ignore[arg-type]
    return found
