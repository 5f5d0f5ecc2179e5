"""The update of a step: the optimizer's, or a guard's decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.global_gradient import BatchResult
from largebatch.gradient.snapshots import Buffers
from largebatch.gradient.step import Measures
from largebatch.training.guard import Guard, GuardDecision
from largebatch.training.step_sums import StepSums


class Plain:
    """An optimizer step; under fp16 the loss scaler leaves it out when a gradient overflowed.

    Attributes:
        guard: judges the steps; None: there is none.
        measures: the measurements that it needs of every step.
    """

    guard = None
    measures = Measures.NONE

    def begin(self) -> None:
        """Before the forward passes of a step."""

    def __call__(self, run: Any, batch: BatchResult, sums: StepSums | None) -> None:
        """After the gradient: step the optimizer of `run`."""
        run.runtime.step(run.optimizer)


class Guarded:
    """A guard decides before the optimizer steps, by numbers of all ranks: so the host waits for them in every step.

    Args:
        guard: judges the steps.
        module: the unwrapped model, whose buffers are put back where an update is left out.
        roll_back: puts the newest checkpoint into the run on every rank; returns whether there was one.
    """

    measures = Measures.LOSS | Measures.GRAD_NORM

    def __init__(self, guard: Guard, module: nn.Module, roll_back: Callable[[Any], bool] = lambda run: False) -> None:
        self.guard, self._module, self._roll_back = guard, module, roll_back
        self._before: Buffers | None = None

    def begin(self) -> None:
        """Remember what the forward passes move besides gradients, if it may have to be put back."""
        if self.guard.acts:
            self._before = Buffers(self._module)

    def __call__(self, run: Any, batch: BatchResult, sums: StepSums | None) -> GuardDecision:
        """After the gradient: step the optimizer of `run`, or not."""
        assert sums is not None, "every step that is judged sums its loss and gradient norm over ranks"
        runtime: Runtime = run.runtime
        optimizer: torch.optim.Optimizer = run.optimizer
        mean_loss = sums.loss_sum / (batch.num_units or 1)
        decision = self.guard.judge(mean_loss, sums.grad_norm, scales_loss=runtime.precision == "fp16")
        runtime.step(optimizer, leaves_out=decision.skips)
        if not decision.skips:
            return decision
        optimizer.zero_grad()
        assert self._before is not None
        self._before.put_back()
        if self.guard.policy == "rollback" and not self.guard.gives_up and self._roll_back(run):
            self.guard.counts.rolled_back += 1
            return replace(decision, action="rollback")
        return decision


Update = Plain | Guarded
