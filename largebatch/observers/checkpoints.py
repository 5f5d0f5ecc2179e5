"""Checkpoints at intervals and at the end, and how a run continues from one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch.checkpoint import (
    Checkpoint,
    CheckpointError,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from largebatch.duration import passes
from largebatch.loop import Run, StepReport
from largebatch.trackers import Problems


@dataclass
class CheckpointObserver:
    """Saves every `every` samples (None: only at the end), when the run is stopped, and after the last step.

    Rank 0 writes. A checkpoint that cannot be written is a problem to report, not a reason to lose the run.

    Attributes:
        folder: where `step_XXXXXXXX` folders go.
        keep: how many to keep.
        identity: plain values that tell what the run is; stored and compared on resume.
        extra: plain values to store beside them.
    """

    folder: Path
    every: int | None
    keep: int
    identity: dict[str, Any]
    extra: dict[str, Any]
    latest: Path | None = None
    _last_step: int = -1
    _problems: Problems = field(default_factory=lambda: Problems("checkpoints"))

    @property
    def problems(self) -> list[str]:
        """What could not be saved, one line per kind of trouble."""
        return self._problems.lines()

    def on_start(self, run: Run) -> None:
        """The step that the run starts from is saved already."""
        self._last_step = run.progress.step

    def after_step(self, run: Run, report: StepReport) -> None:
        """Save, if the interval is over."""
        before = report.samples_seen - report.plan.global_batch_size
        if self.every is not None and passes(self.every, before, report.samples_seen):
            self.save(run)

    def on_end(self, run: Run, status: str) -> None:
        """Save the final weights, unless they are not numbers any more."""
        if status != "diverged" and self._last_step != run.progress.step:
            self.save(run)

    def save(self, run: Run) -> None:
        """Save now. Every rank calls it, since batch norm statistics are merged first."""
        self._last_step = run.progress.step
        run.gradient.statistics.merge()
        if not run.runtime.is_main:
            return
        try:
            _require_finite(run)
            tensors, values = pack_optimizer(run.optimizer, parameter_names(run))
            self.latest = save_checkpoint(
                self.folder,
                step=run.progress.step,
                tensors={"model": dict(run.module.state_dict()), "optimizer": tensors},
                values={
                    "step": run.progress.step,
                    "samples_seen": run.progress.samples_seen,
                    "identity": self.identity,
                    "optimizer": values,
                    "loss_scale": run.runtime.loss_scale_state(),
                    "extra": self.extra,
                },
                keep=self.keep,
            )
        except CheckpointError as error:
            self._problems.count("one was not saved", error)


def _require_finite(run: Run) -> None:
    """Divergence is noticed some steps later: until then it must not push good checkpoints out."""
    for name, tensor in run.module.named_parameters():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"at step {run.progress.step} {name} is not finite; earlier checkpoints are kept")


def parameter_names(run: Run) -> dict[Tensor, str]:
    """Name of every parameter of the unwrapped model."""
    return {parameter: name for name, parameter in run.module.named_parameters()}


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Put weights, buffers, optimizer state and position of `checkpoint` into `run`.

    Raises:
        CheckpointError: if the model or the optimizer has other parameters than the checkpoint.
    """
    missing, unexpected = run.module.load_state_dict(checkpoint.tensors["model"], strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another model: it lacks {missing or 'nothing'} and has "
            f"{unexpected or 'nothing'} beyond it. Resume with the config of the run, or start anew with resume=none."
        )
    values = checkpoint.values
    unpack_optimizer(run.optimizer, checkpoint.tensors["optimizer"], values["optimizer"], parameter_names(run))
    run.runtime.load_loss_scale_state(values["loss_scale"])
    run.progress.step, run.progress.samples_seen = values["step"], values["samples_seen"]
