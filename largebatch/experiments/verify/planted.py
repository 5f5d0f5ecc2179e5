"""Defects to plant into the trainer, and a sound model with every oddity: they measure misses and false alarms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch.batch.plan import BatchPlan
from largebatch.data import MicroBatchData
from largebatch.losses import Loss
from largebatch.losses.coupled import is_coupled
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Run

# A relative error that is clearly none of rounding, by the largest entry of the gradient or the weights.
SMALL = {"fp64": 1e-6, "fp32": 1e-2}


class OddNet(nn.Module):
    """A sound net of what users bring: [n, 1, 8, 8] -> [n, 10].

    A bias in front of a batch norm and a shift of all logits, whose gradients are 0 but for rounding; a layer that is
    used twice, a frozen one, and one that most of its inputs leave at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 12), nn.BatchNorm1d(12)
        self.twice = nn.Linear(12, 12)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.dead, self.head = nn.Linear(12, 12), nn.Linear(12, 10)
        self.shift = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            self.dead.bias.fill_(-4.0)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        hidden = torch.relu(self.norm(self.first(images.flatten(1))))
        hidden = torch.tanh(self.twice(torch.tanh(self.twice(hidden))))
        return self.head(hidden + torch.relu(self.dead(self.frozen(hidden)))) + self.shift


class FactorPerMicroBatch:
    """A loss times a factor for each micro-batch; all else is delegated to the loss."""

    def __init__(self, loss: Loss, factor: Callable[[int, int], float]) -> None:
        self._loss, self._factor, self._calls = loss, factor, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss of this rank's next micro-batch, times its factor."""
        self._calls += 1
        return self._loss.loss_per_sample(outputs, targets) * self._factor(self._calls - 1, len(targets))


@dataclass(frozen=True)
class Defect:
    """A defect of training.

    Attributes:
        name: in a few words.
        factor: multiplies the loss of each micro-batch: (plan, rank) -> ((call, samples) -> factor); or None.
        plant: changes a run before it starts; or None.
        applies: whether it changes anything: (plan, run).
    """

    name: str
    factor: Callable[[BatchPlan, int], Callable[[int, int], float]] | None = None
    plant: Callable[[Run], None] | None = None
    applies: Callable[[BatchPlan, Prepared], bool] = lambda plan, prepared: True

    def loss(self, loss: Loss, plan: BatchPlan, rank: int) -> Loss:
        """The loss that the trainer gets."""
        return loss if self.factor is None else FactorPerMicroBatch(loss, self.factor(plan, rank))


def _mean_of_means(plan: BatchPlan, rank: int) -> Callable[[int, int], float]:
    mean_size = plan.global_batch_size / len(plan.micro_batch_sizes)
    return lambda call, samples: mean_size / samples


def _dropped(plan: BatchPlan, rank: int) -> Callable[[int, int], float]:
    return lambda call, samples: 0.0 if rank == plan.world_size - 1 and call == 0 else 1.0


def _ranks_alike(plan: BatchPlan, rank: int) -> Callable[[int, int], float]:
    mean_share = plan.global_batch_size / plan.world_size
    return lambda call, samples: mean_share / plan.rank_batch_size(rank)


def _after_the_gradient(run: Run, change: Callable[[Tensor], Tensor]) -> None:
    finish = run.gradient.reduction.finish

    def changed() -> None:
        finish()
        for parameter in run.module.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(change(parameter.grad))

    run.gradient.reduction.finish = changed  # type: ignore[method-assign]


def _small(tensor: Tensor) -> float:
    return SMALL["fp64" if tensor.dtype == torch.float64 else "fp32"]


def _too_long(run: Run) -> None:
    _after_the_gradient(run, lambda gradient: gradient * (1 + _small(gradient)))


def _of_few_digits(run: Run) -> None:
    low = {torch.float64: torch.float32, torch.float32: torch.bfloat16}
    _after_the_gradient(run, lambda gradient: gradient.to(low[gradient.dtype]).to(gradient.dtype))


def _a_sample_twice(run: Run) -> None:
    take = run.steps.batches.take

    def doubled(batches: Iterator[MicroBatchData]) -> Iterator[MicroBatchData]:
        for batch in batches:
            order = torch.arange(len(batch.targets))
            order[-1] = 0
            assert isinstance(batch.inputs, Tensor)
            yield replace(batch, inputs=batch.inputs[order], targets=batch.targets[order])

    run.steps.batches.take = lambda plan: doubled(take(plan))  # type: ignore[method-assign]


def _late_rate(run: Run) -> None:
    lr_at, batch = run.steps.lr_at, run.steps.batches.ramp.at(0).global_batch_size
    run.steps.lr_at = lambda samples: lr_at(max(samples - batch, 0))


def _forgetful(run: Run) -> None:
    run.optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.state.clear())


def _astray(run: Run) -> None:
    if run.runtime.rank == run.runtime.world_size - 1:

        @torch.no_grad()
        def drift(*_: Any) -> None:
            for parameter in run.module.parameters():
                parameter.mul_(1 + _small(parameter))

        run.optimizer.register_step_post_hook(drift)


def _drifted(run: Run) -> None:
    run.gradient.statistics.merge = lambda: None  # type: ignore[method-assign]


def _has_ghost_norms(prepared: Prepared) -> bool:
    return prepared.config.batch_norm == "per_micro_batch" and any(
        isinstance(one, _NormBase) for one in prepared.model.modules()
    )


DEFECTS = (
    Defect("mean of means", _mean_of_means,
           applies=lambda plan, prepared: len(set(plan.micro_batch_sizes)) > 1 and not is_coupled(prepared.loss)),
    Defect("a micro-batch dropped", _dropped),
    Defect(
        "ranks weighed alike",
        _ranks_alike,
        applies=lambda plan, _: len({plan.rank_batch_size(rank) for rank in range(plan.world_size)}) > 1,
    ),
    Defect("one rank unscaled", lambda plan, rank: lambda call, samples: 1.0 if rank else 1 / plan.world_size,
           applies=lambda plan, _: plan.world_size > 1),
    Defect("a sample twice", plant=_a_sample_twice),
    Defect("gradient a little too long", plant=_too_long,  # clipping takes it off again
           applies=lambda _, prepared: prepared.config.clip_norm is None),
    Defect("gradient in lower precision", plant=_of_few_digits),
    Defect("rate of the step before", plant=_late_rate,  # Rprop reads it in its first step only
           applies=lambda _, prepared: not isinstance(prepared.optimizer, torch.optim.Rprop)),
    Defect("optimizer's state forgotten", plant=_forgetful),
    Defect("one rank's weights astray", plant=_astray),
    Defect("running statistics of one rank", plant=_drifted,
           applies=lambda plan, prepared: plan.world_size > 1 and _has_ghost_norms(prepared)),
)  # fmt: skip
