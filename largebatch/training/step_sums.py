"""One small sum by which ranks agree on loss, stops and saves, made only as often as it costs next to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from largebatch.distributed.gather import disagreement
from largebatch.distributed.pending_sum import PendingSum
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.sending import sent
from largebatch.gradient.step import Measures, Step
from largebatch.training.guard import Guard
from largebatch.training.progress import Progress

Status = Literal["running", "finished", "stopped", "diverged"]

# Steps longer than this are agreed on one by one: the sum, about a millisecond over sockets, is below one per cent of
# them. Shorter ones are agreed on at intervals: with the usual 10 steps between them, within a second as well.
SLOW_STEP_S = 0.1


@dataclass(frozen=True)
class StepSums:
    """Loss of a global batch, requests to stop or save, steps and rank 0's time per step, summed over ranks.

    The sum travels while the next step computes; whoever reads it one step later does not wait. Since every rank reads
    the same numbers, all of them stop, or change the interval of sums, after the same step.
    """

    _pending: PendingSum
    _world_size: int

    @property
    def loss_sum(self) -> float:
        """Sum of the loss over the whole global batch."""
        return self._pending.result()[0]

    @property
    def grad_norm(self) -> float:
        """Norm of the global gradient, as the mean over ranks: not a number, or infinite, if it is on any of them."""
        return self._pending.result()[4 + self._world_size]

    @property
    def steps_are_slow(self) -> bool:
        """Whether agreeing after every step costs next to nothing."""
        return self._pending.result()[3] > SLOW_STEP_S

    @property
    def asks_to_save(self) -> bool:
        """Whether a rank asks for a checkpoint."""
        return self._pending.result()[2] > 0

    def status(self, *, is_last: bool = False, takes_any_loss: bool = False) -> Status:
        """How the run stands: "running", "stopped" (not after the last step), or "diverged" (not if any loss will do).

        Raises:
            RuntimeError: on every rank, if ranks are at different steps; names the rank.
        """
        loss_sum, num_stops, _, _, *steps = self._pending.result()[: 4 + self._world_size]
        if found := disagreement([round(step) for step in steps]):
            raise RuntimeError(
                f"Ranks are at different steps. {found.explain('Steps done')}. A rank skipped or repeated a step, and "
                "its gradients were mixed with the others'. Resume from the last checkpoint."
            )
        if not math.isfinite(loss_sum) and not takes_any_loss:
            return "diverged"
        return "stopped" if num_stops and not is_last else "running"


class Agreement:
    """Lets ranks agree after a step, as often as it costs next to nothing, on how the run stands.

    Args:
        runtime: the job.
        every: steps between sums where steps are short.
        guard: judges steps by their loss and gradient norm, so ranks agree on both; None: a loss that is not a number
            ends the run.
        save_requested: whether this rank asks for a checkpoint.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        every: int = 10,
        guard: Guard | None = None,
        save_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._runtime, self._every, self._guard, self._save_requested = runtime, every, guard, save_requested
        self._takes_any_loss = guard is not None and guard.acts  # it costs its step alone
        self.begin(Progress())

    def begin(self, progress: Progress) -> None:
        """Before the first step."""
        self._steps_are_slow = True  # until it is known
        self._pending: StepSums | None = None
        self._last, self._step_s = (progress.timed_steps, progress.train_s), math.inf  # unknown, so long

    def send(
        self, step: Step, loss_sum: Tensor, grad_norm: Tensor | None, progress: Progress, *, stop: bool
    ) -> StepSums | None:
        """Start the sum of a step, with the time per step since the last sum; None: this step makes none."""
        if not (self._steps_are_slow or Measures.LOSS in step.measures or step.has_row(self._every)):
            return None
        last_step, last_s = self._last
        if progress.timed_steps > last_step:  # of others a GPU has not told the time yet
            self._step_s = (progress.train_s - last_s) / (progress.timed_steps - last_step)
            self._last = (progress.timed_steps, progress.train_s)
        # A place of its own for every rank's step: from a sum nobody could tell which rank is at another one.
        steps = [progress.step if rank == self._runtime.rank else 0 for rank in range(self._runtime.world_size)]
        own_s = min(self._step_s, 1e9) if self._runtime.is_main else 0.0
        others = torch.tensor([stop, self._save_requested(), own_s, *steps], dtype=torch.float64)
        values = [loss_sum.reshape(1), sent(others, self._runtime.device)]
        if self._guard is not None and grad_norm is not None:
            values.append(grad_norm.double().reshape(1) / self._runtime.world_size)
        return StepSums(self._runtime.start_sum(torch.cat(values)), self._runtime.world_size)

    def read(self, sums: StepSums | None) -> tuple[Status, bool]:
        """Take the sums of this step, and read those of the step before, which have arrived: nobody waits.

        Returns:
            How the run stood after the step before, and whether a rank asked for a checkpoint then. A guard gives up at
            once.
        """
        before, self._pending = self._pending, sums
        status: Status = "running"
        if before is not None:
            self._steps_are_slow = before.steps_are_slow
            status = before.status(takes_any_loss=self._takes_any_loss)
        if self._guard is not None and self._guard.gives_up:
            status = "diverged"
        return status, before is not None and before.asks_to_save

    def end(self, *, is_last: bool) -> Status:
        """How the run stands after its last step."""
        if self._pending is None:
            return "running"
        return self._pending.status(is_last=is_last, takes_any_loss=self._takes_any_loss)
