"""Weights of a checkpoint with all that its run would go on with: optimizer state, loss scale, settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from largebatch.distributed.of_rank0 import of_rank0
from largebatch.experiments.measure.weights import Weights
from largebatch.gradient.snapshots import rolled_back
from largebatch.records.checkpoint import Checkpoint, CheckpointError, Fits, require_run_fit, unpack_optimizer
from largebatch.records.run_folder import RunFolder
from largebatch.run.prepare import Prepared
from largebatch.run.resume import find_checkpoint, run_identity
from largebatch.run.resume.fitting import changed_options
from largebatch.run.resume.identity import changes_of
from largebatch.training.loop import Run
from largebatch.training.observers.restoring import names_of

KEY = "measure.checkpoint"


def find_run_checkpoint(prepared: Prepared, weights: Weights) -> Checkpoint | None:
    """The checkpoint behind the weights, with the optimizer's state; None for initial weights. Every rank calls it.

    It must be one from which the run of `prepared` could go on, with the changes that `resume_allow` permits.

    Raises:
        CheckpointError: if it belongs to another run: branches inherit its optimizer, rate and schedule.
    """
    if weights.checkpoint is None:
        return None
    path, runtime = Path(weights.checkpoint), weights.runtime
    checkpoint, _ = find_checkpoint(str(path), RunFolder(path), runtime, key=KEY, fits=_fits(prepared))
    assert checkpoint is not None
    return checkpoint


def _fits(prepared: Prepared) -> Fits:
    identity, allow = run_identity(prepared), prepared.config.resume_allow

    def fits(checkpoint: Checkpoint) -> None:
        changes = changes_of(checkpoint, identity)
        if refused := [change for change in changes if not change.is_allowed_by(allow)]:
            raise CheckpointError(
                f"{KEY}={checkpoint.path} belongs to a run with other settings: {'; '.join(map(str, refused[:8]))}. "
                "Branches go on from its optimizer, rate and schedule. Give the settings of its run, which are in its "
                "config.yaml, or permit a change on purpose with resume_allow=[KEY]."
            )
        scaled = prepared.scaled_groups
        keeps = changed_options(changes, scaled)
        require_run_fit(checkpoint, prepared.model, prepared.optimizer, keeps=keeps, scaled=scaled)

    return fits


@contextmanager
def from_checkpoint(run: Run, prepared: Prepared, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Inside the run has the optimizer state and loss scale of the checkpoint, whose weights it has already."""
    loss_scale = run.runtime.loss_scale_state()
    try:
        with rolled_back(run.module, run.optimizer):
            if checkpoint is not None:
                tensors, values = checkpoint.tensors["optimizer"], checkpoint.values["optimizer"]
                fetch, names = partial(of_rank0, run.runtime), names_of(run.module)
                keeps = changed_options(changes_of(checkpoint, run_identity(prepared)), prepared.scaled_groups)
                unpack_optimizer(run.optimizer, tensors, values, names, keeps=keeps, fetch=fetch)
                run.runtime.load_loss_scale_state(checkpoint.values["loss_scale"])
            yield
    finally:
        run.runtime.load_loss_scale_state(loss_scale)
        run.gradient.statistics.forget()
