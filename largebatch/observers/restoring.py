"""How a run continues from a checkpoint, or goes back to one while its position stays."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from largebatch.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest_valid, unpack_optimizer
from largebatch.loop import Run


def parameter_names(run: Run) -> dict[Tensor, str]:
    """Name of every parameter of the unwrapped model."""
    return {parameter: name for name, parameter in run.module.named_parameters()}


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Put weights, buffers, optimizer state, position and the guard's memory of `checkpoint` into `run`.

    Raises:
        CheckpointError: if the model or the optimizer has other parameters than the checkpoint.
    """
    _restore_weights(run, checkpoint)
    values = checkpoint.values
    run.runtime.load_loss_scale_state(values["loss_scale"])
    run.progress.step, run.progress.samples_seen = values["step"], values["samples_seen"]
    if run.guard is not None and "guard" in values:  # not in those of a run without one
        run.guard.load(values["guard"])


def roll_back(run: Run, folder: Path, origin: Path | None) -> bool:
    """Put weights, buffers and optimizer state of the newest valid checkpoint into `run`. Every rank calls it.

    The position stays, and so does the loss scale: both belong to the batches, not to the weights.

    Args:
        run: goes on with the next batch.
        folder: of the run's checkpoints; those of later steps, which another process may have left, do not count.
        origin: the checkpoint that the run was resumed from, if there is none yet in `folder`.

    Returns:
        Whether there was a checkpoint.
    """
    where: str | None = None
    newest: Checkpoint | None = None
    if run.runtime.is_main:
        newest, _ = newest_valid(folder, up_to=run.progress.step)
        path = origin if newest is None else newest.path
        where = None if path is None else str(path)
    where = run.runtime.broadcast(where)
    if where is None:
        return False
    _restore_weights(run, newest or load_checkpoint(Path(where)))
    run.gradient.statistics.forget()
    return True


def _restore_weights(run: Run, checkpoint: Checkpoint) -> None:
    missing, unexpected = run.module.load_state_dict(checkpoint.tensors["model"], strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another model: it lacks {missing or 'nothing'} and has "
            f"{unexpected or 'nothing'} beyond it. Resume with the config of the run, or start anew with resume=none."
        )
    optimizer = checkpoint.tensors["optimizer"], checkpoint.values["optimizer"]
    unpack_optimizer(run.optimizer, *optimizer, parameter_names(run))
