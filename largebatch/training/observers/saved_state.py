"""What a checkpoint needs to bring a run back; see `restoring` for the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from largebatch.gradient.reductions import Overlapped
from largebatch.records.checkpoint import NotSavedError, Soundness, Staging, pack_optimizer
from largebatch.records.checkpoint.run_fit import EMA, OWN_OBSERVERS
from largebatch.training.loop import Observer, Run
from largebatch.training.observers.own_state import own_states
from largebatch.training.observers.restoring import COMPRESSION, STATISTICS, memory_of, names_of
from largebatch.training.weight_average import average_of

OfRanks = Mapping[str, dict[str, Tensor]]
_SOUND = "sound"  # the group of the flags, which is not saved


@dataclass(frozen=True)
class SavedState:
    """A run as it was when this was taken.

    Attributes:
        tensors: by group; the run goes on to change them, unless they were copied.
        values: plain ones.
    """

    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]
    _soundness: Soundness
    _wait: Callable[[], None] = lambda: None

    def settle(self) -> None:
        """Wait until the tensors are on the host, if they are copied there.

        Raises:
            NotSavedError: if a weight is not finite. Divergence is noticed some steps later: until then it must not
                push good checkpoints out.
        """
        self._wait()
        if name := self._soundness.first_unsound():
            raise NotSavedError(f"at step {self.values['step']} {name} is not finite; earlier checkpoints are kept")


def own_of_ranks(run: Run) -> OfRanks:
    """What each rank has of its own, by group, as rank 0 saves it. Every rank calls it."""
    reduction = run.gradient.reduction
    compression = reduction.power_sgd if isinstance(reduction, Overlapped) else None
    groups = {
        STATISTICS: run.gradient.statistics.state(),
        COMPRESSION: {} if compression is None else compression.state(),
    }
    return {group: tensors for group, tensors in groups.items() if tensors}


def state_of(run: Run, of_ranks: OfRanks, own: Mapping[str, Observer]) -> SavedState:
    """The run as it is now.

    Args:
        run: whose running statistics are merged.
        of_ranks: from before they were merged, see `own_of_ranks`.
        own: observers of the user's own, by name.
    """
    optimizer, values = pack_optimizer(run.optimizer, names_of(run.module))
    states, of_states = own_states(own)
    tensors = {"model": dict(run.module.state_dict()), "optimizer": optimizer, **of_ranks}
    tensors |= {OWN_OBSERVERS: of_states} if of_states else {}
    if (average := average_of(run)) is not None and average.has_begun:
        tensors[EMA] = average.tensors(run.module)
    values = {
        "step": run.progress.step,
        "samples_seen": run.progress.samples_seen,
        "optimizer": values,
        "loss_scale": run.runtime.loss_scale_state(),
        "memory": memory_of(run),
        **({} if run.guard is None else {"guard": run.guard.state()}),
        **({OWN_OBSERVERS: states} if states else {}),
        **({EMA: average.counts()} if average is not None and average.has_begun else {}),
    }
    return SavedState(tensors, values, Soundness.of(run.module))


def copied(state: SavedState, staging: Staging) -> SavedState:
    """The same in host memory, where the run does not change it; on a GPU the copies are only queued."""
    copies, wait = staging.copy({**state.tensors, _SOUND: {_SOUND: state._soundness.flags}})
    soundness = replace(state._soundness, flags=copies.pop(_SOUND)[_SOUND])
    return replace(state, tensors=copies, _soundness=soundness, _wait=wait)
