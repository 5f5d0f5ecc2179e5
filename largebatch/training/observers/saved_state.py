"""What a checkpoint needs to bring a run back; see `restoring` for the way back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from largebatch.records.checkpoint import NotSavedError, pack_optimizer, unsound_weights
from largebatch.training.loop import Run
from largebatch.training.observers.restoring import STATISTICS, memory_of, names_of


def state_of(run: Run, of_ranks: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by group, which the run goes on to change, and plain values of the run as it is now.

    Args:
        run: whose running statistics are merged.
        of_ranks: those of each rank apart.

    Raises:
        NotSavedError: if a weight is not finite. Divergence is noticed some steps later: until then it must not push
            good checkpoints out.
    """
    if name := unsound_weights(run.module):
        raise NotSavedError(f"at step {run.progress.step} {name} is not finite; earlier checkpoints are kept")
    optimizer, values = pack_optimizer(run.optimizer, names_of(run.module))
    tensors = {"model": dict(run.module.state_dict()), "optimizer": optimizer}
    if of_ranks:
        tensors[STATISTICS] = of_ranks
    return tensors, {
        "step": run.progress.step,
        "samples_seen": run.progress.samples_seen,
        "optimizer": values,
        "loss_scale": run.runtime.loss_scale_state(),
        "memory": memory_of(run),
        **({} if run.guard is None else {"guard": run.guard.state()}),
    }
