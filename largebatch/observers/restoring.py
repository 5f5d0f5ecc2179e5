"""How a run continues from a checkpoint, or goes back to one while its position stays."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_optimizer,
    load_checkpoint,
    newest_valid,
    unpack_optimizer,
)
from largebatch.loop import Run

_REMEDY = "Resume with the config and the code of the run, or start anew in another run.dir with resume=none."


def names_of(module: nn.Module) -> dict[Tensor, str]:
    """Name of every parameter."""
    return {parameter: name for name, parameter in module.named_parameters()}


def require_fit(module: nn.Module, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another model or optimizer; both are left as they are.

    Raises:
        CheckpointError: with the names and shapes that differ.
    """
    saved, state = checkpoint.tensors["model"], module.state_dict()
    missing, unexpected = sorted(state.keys() - saved.keys()), sorted(saved.keys() - state.keys())
    others = [
        f"{name} is {list(saved[name].shape)} in it and {list(parameter.shape)} in the model"
        for name, parameter in module.named_parameters()  # a buffer may take the shape of what it is given
        if name in saved and saved[name].shape != parameter.shape
    ]
    if missing or unexpected or others:
        told = [f"it lacks {missing}"] * bool(missing) + [f"it has {unexpected} beyond it"] * bool(unexpected) + others
        raise CheckpointError(f"{checkpoint.path} belongs to another model: {'; '.join(told)}. {_REMEDY}")
    check_optimizer(optimizer, checkpoint.tensors["optimizer"], checkpoint.values["optimizer"], names_of(module))


def restore(run: Run, checkpoint: Checkpoint, *, changed_options: frozenset[str] = frozenset()) -> None:
    """Put weights, buffers, optimizer state, position and the guard's memory of `checkpoint` into `run`.

    Options of the optimizer come from the checkpoint, too, but for `changed_options`.

    Raises:
        CheckpointError: if the model or the optimizer has other parameters than the checkpoint.
    """
    _restore_weights(run, checkpoint, changed_options)
    values = checkpoint.values
    run.runtime.load_loss_scale_state(values["loss_scale"])
    run.progress.step, run.progress.samples_seen = values["step"], values["samples_seen"]
    if run.guard is not None and "guard" in values:  # not in those of a run without one
        run.guard.load(values["guard"])


def roll_back(run: Run, folder: Path, origin: Path | None, *, changed_options: frozenset[str] = frozenset()) -> bool:
    """Put weights, buffers and optimizer state of the newest valid checkpoint into `run`. Every rank calls it.

    The position stays, and so does the loss scale: both belong to the batches, not to the weights.

    Args:
        run: goes on with the next batch.
        folder: of the run's checkpoints; those of later steps, which another process may have left, do not count.
        origin: the checkpoint that the run was resumed from, if there is none yet in `folder`.
        changed_options: as for `restore`.

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
    _restore_weights(run, newest or load_checkpoint(Path(where)), changed_options)
    run.gradient.statistics.forget()
    return True


def _restore_weights(run: Run, checkpoint: Checkpoint, changed_options: frozenset[str]) -> None:
    require_fit(run.module, run.optimizer, checkpoint)
    try:
        run.module.load_state_dict(checkpoint.tensors["model"], strict=False)
    except RuntimeError as error:
        differences = " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint.path} belongs to another model: {differences}. {_REMEDY}") from error
    optimizer = checkpoint.tensors["optimizer"], checkpoint.values["optimizer"]
    unpack_optimizer(run.optimizer, *optimizer, names_of(run.module), keeps=changed_options)
