"""How a run continues from a checkpoint, or goes back to one while its position stays."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from largebatch.distributed.of_rank0 import of_rank0
from largebatch.gradient.reductions import Overlapped
from largebatch.records.checkpoint import (
    Checkpoint,
    CheckpointError,
    chosen_by_rank0,
    load_checkpoint,
    load_weights,
    newest_valid,
    require_run_fit,
    unpack_optimizer,
)
from largebatch.records.checkpoint.reading import brief, plain
from largebatch.records.checkpoint.run_fit import COMPRESSION, EMA, STATISTICS
from largebatch.training.loop import Run
from largebatch.training.raised import error_text
from largebatch.training.weight_average import average_of

_REMEDY = "Go on with the config and the code of its run, or start anew without it, in another run.dir."


@runtime_checkable
class Remembering(Protocol):
    """An observer that goes by what it has seen in earlier steps."""

    def state(self) -> dict[str, Any]:
        """What it goes by, as plain values; the same on every rank, or rank 0's alone counts."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


@runtime_checkable
class Forgetting(Protocol):
    """An observer that forgets what it learned of weights that a guard takes back."""

    def forget_after(self, run: Run, samples_seen: int, memory: Mapping[str, Any]) -> None:
        """The run has the weights of the checkpoint after `samples_seen` samples; `memory` is its, see `memory_of`."""


def names_of(module: nn.Module) -> dict[Tensor, str]:
    """Name of every parameter."""
    return {parameter: name for name, parameter in module.named_parameters()}


def memory_of(run: Run) -> dict[str, Any]:
    """What a run goes by besides weights, buffers, optimizer and position, as plain values: it goes on as it was."""
    return {
        "world_size": run.runtime.world_size,
        "gradient": run.gradient.state(),
        "batches": run.steps.batches.state(),
        "observers": {type(one).__name__: one.state() for one in run.observers if isinstance(one, Remembering)},
    }


def restore(run: Run, checkpoint: Checkpoint, *, changed_options: frozenset[str] = frozenset()) -> list[str]:
    """Put all of `checkpoint` into `run`, before its first step. Every rank calls it; the tensors of rank 0 count.

    Options of the optimizer come from the checkpoint, too, but for `changed_options`.

    Returns:
        What a person should know of it.

    Raises:
        CheckpointError: if the model or the optimizer has other parameters than the checkpoint, or the memory of its
            run does not fit.
    """
    try:
        # The order of gradients first: settling it calls hooks that a user may have on parameters.
        notes = _remember(run, checkpoint.values.get("memory"))
        _restore_weights(run, checkpoint, changed_options)
        statistics = checkpoint.tensors.get(STATISTICS, {})
        run.gradient.statistics.load({name: of_rank0(run.runtime, statistics[name]) for name in sorted(statistics)})
        notes += _restore_average(run, checkpoint)
        if isinstance(run.gradient.reduction, Overlapped) and (compression := run.gradient.reduction.power_sgd):
            notes += compression.load(checkpoint.tensors.get(COMPRESSION, {}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit this run: {plain(error_text(error))}. Use an older checkpoint, or "
            "start anew without it."
        ) from error
    values = checkpoint.values
    run.runtime.load_loss_scale_state(values["loss_scale"])
    run.progress.step, run.progress.samples_seen = values["step"], values["samples_seen"]
    if run.scaled is not None and run.scaled.keys & changed_options:  # another rule made the saved values
        run.scaled.write(run.optimizer, run.progress.samples_seen, carries=False)
    if run.guard is not None and "guard" in values:  # not in those of a run without one
        run.guard.load(values["guard"])
    return notes


def _remember(run: Run, memory: dict[str, Any] | None) -> list[str]:
    if memory is None:  # of a version that did not write it
        several = run.runtime.world_size > 1
        return ["saved by an older version: last digits may differ from an uninterrupted run's"] * several
    run.gradient.load(memory["gradient"])
    for one in run.observers:
        if isinstance(one, Remembering) and (state := memory["observers"].get(type(one).__name__)) is not None:
            one.load(state)
    if memory["world_size"] == run.runtime.world_size and run.steps.batches.load(memory["batches"]):
        size = run.steps.batches.ramp.max_micro_batch_size
        return [f"micro-batches hold at most {size} samples, as since memory was short before the stop"]
    return []


def roll_back(run: Run, folder: Path, origin: Path | None, *, changed_options: frozenset[str] = frozenset()) -> bool:
    """Put weights, buffers and optimizer state of the newest valid checkpoint into `run`. Every rank calls it.

    The position stays, and so does the loss scale: both belong to the batches, not to the weights.

    Args:
        run: goes on with the next batch.
        folder: of the run's checkpoints; those of later steps, which another process may have left, do not count.
        origin: the checkpoint that the run was resumed from, if there is none yet in `folder` and it is still there.
        changed_options: as for `restore`.

    Returns:
        Whether there was a checkpoint.
    """
    fits = partial(
        require_run_fit, module=run.module, optimizer=run.optimizer, keeps=changed_options, scaled=run.scaled
    )

    def choose() -> tuple[Checkpoint | None, list[str]]:
        newest, _ = newest_valid(folder, up_to=run.progress.step, fits=fits)
        if newest is None and origin is not None:
            # In the folder of another run, such as the trunk of a cooldown, which may have removed it by now.
            with contextlib.suppress(CheckpointError):
                newest = load_checkpoint(origin, fits)
        return newest, []

    checkpoint, _ = chosen_by_rank0(run.runtime, choose)
    if checkpoint is None:
        return False
    _restore_weights(run, checkpoint, changed_options)
    _restore_average(run, checkpoint)
    run.gradient.statistics.forget()
    for one in run.observers:
        if isinstance(one, Forgetting) and (memory := checkpoint.values.get("memory")) is not None:
            one.forget_after(run, checkpoint.values["samples_seen"], memory)
    return True


def _restore_average(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Go on with the average of a checkpoint, or begin with its weights if it has none."""
    average, saved = average_of(run), checkpoint.tensors.get(EMA, {})
    if average is None:
        return []
    values = {name: of_rank0(run.runtime, saved[name]) for name in sorted(saved)}
    average.load(run.module, values, checkpoint.values.get(EMA, {}))
    is_late = not saved and checkpoint.values["samples_seen"] > average.settings.start
    return ["ema: the checkpoint has no average; it begins with these weights"] * is_late


def _restore_weights(run: Run, checkpoint: Checkpoint, changed_options: frozenset[str]) -> None:
    try:
        missing, unexpected = load_weights(run.runtime, run.module, checkpoint.tensors["model"])
    except Exception as error:  # of a hook of the model's own
        raise CheckpointError(f"{checkpoint.path} belongs to another model: {error_text(error)}. {_REMEDY}") from error
    if missing or unexpected:
        what = f"it lacks {brief(missing) if missing else 'nothing'} and has {brief(unexpected)} beyond it"
        raise CheckpointError(f"{checkpoint.path} belongs to another model: {what}. {_REMEDY}")
    optimizer = checkpoint.tensors["optimizer"], checkpoint.values["optimizer"]
    fetch = partial(of_rank0, run.runtime)
    unpack_optimizer(run.optimizer, *optimizer, names_of(run.module), keeps=changed_options, fetch=fetch)
