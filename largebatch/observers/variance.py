"""The 1/B law of a run while it trains, from the micro-batches that a step computes anyway."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch import BatchPlan
from largebatch.diagnostics.nested_groups import NestedGroups
from largebatch.diagnostics.variance_trend import Trend, VarianceTrend
from largebatch.loop import Run, StepReport
from largebatch.observers.metrics import Journal
from largebatch.trackers import Row


class VarianceObserver:
    """Measures the gradient variance at 1, 2, 4, ... micro-batches every `every` steps and logs a row each time.

    `variance/at_B` is the variance of the mean gradient of B samples, as a running mean; `variance/slope` with its
    interval, `variance/slope_low` to `variance/slope_high`, is the power with which it falls: -1 by the law. A hook on
    every parameter adds the fresh gradient of each backward pass, before any reduction between ranks, to the nested
    groups of its rank. Only the steps that are measured pay: for one pass over the gradients per micro-batch, memory
    for a float64 gradient per group size, and a small sum over ranks. Steps whose micro-batches differ in size, or of
    which a rank has fewer than 4, are not measured: two sizes and a larger one to compare with are needed.

    Args:
        journal: for the rows.
        every: steps between measurements.
        window: measurements that count.
    """

    def __init__(self, journal: Journal, *, every: int, window: int) -> None:
        self._journal = journal
        self._every = every
        self._trend = VarianceTrend(journal.num_samples, window)
        self._handles: list[Any] = []
        self._sizes: list[int] = []
        self._groups: dict[int, NestedGroups] = {}
        self._share = 0.0
        self.latest: Trend | None = None

    def on_start(self, run: Run) -> None:
        """Listen to the first step, if it is measured."""
        self._prepare(run, run.progress.step, run.progress.samples_seen)

    def after_step(self, run: Run, report: StepReport) -> None:
        """Take the measurement of this step, if it made one, and listen to the next, if that is measured."""
        if self._handles and report.is_skipped:
            self._release()
        elif self._handles:
            self._take(run, report.plan)
        self._prepare(run, report.step, report.samples_seen)

    def on_end(self, run: Run, status: str) -> None:
        """Listen no more."""
        self._release()

    def _prepare(self, run: Run, steps_done: int, samples_seen: int) -> None:
        if (steps_done + 1) % self._every or steps_done == run.num_steps:
            return
        plan = run.batches.ramp.at(samples_seen)
        self._sizes = group_sizes(plan)
        if len(self._sizes) < 3:
            return
        # What the gradients of a step are multiplied by: to be undone.
        scale = 1 if run.ordered else run.runtime.world_size
        loss_scale = float(run.runtime.loss_scale_state().get("scale", 1.0))
        self._share = plan.global_batch_size / plan.micro_batch_sizes[0] / scale / loss_scale
        self._groups = {}
        parameters: list[nn.Parameter] = [one for one in run.module.parameters() if one.requires_grad]
        self._handles = [
            parameter.register_hook(partial(self._listen, number)) for number, parameter in enumerate(parameters)
        ]

    def _listen(self, number: int, gradient: Tensor) -> None:
        groups = self._groups.setdefault(number, NestedGroups(self._sizes))
        groups.add(gradient.detach().reshape(-1).to(torch.float64, copy=True), 1)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _take(self, run: Run, plan: BatchPlan) -> None:
        self._release()
        found = [groups.mean_sq_norms() for groups in self._groups.values()]
        self._groups = {}
        own = torch.tensor(found, dtype=torch.float64, device=run.runtime.device).sum(dim=0) * self._share**2
        run.runtime.sum_in_place(own)
        sizes = [size * plan.micro_batch_sizes[0] for size in self._sizes]
        self._trend.add(sizes, (own / run.runtime.world_size).tolist())
        self.latest = self._trend.estimate()
        if self.latest is not None:
            self._journal.log(run.progress, row_of(self.latest))


def group_sizes(plan: BatchPlan) -> list[int]:
    """1, 2, 4, ... micro-batches as far as every rank has them; none if micro-batches differ in size.

    >>> group_sizes(BatchPlan.pinned(global_batch_size=48, world_size=2, micro_batch_size=4))
    [1, 2, 4]
    """
    fewest = min(len(plan.micro_batches(rank)) for rank in range(plan.world_size))
    if len(set(plan.micro_batch_sizes)) > 1:
        return []
    return [2**power for power in range(fewest.bit_length())]


def row_of(trend: Trend) -> Row:
    """What is logged; keys of what is not known are left out."""
    row: Row = {f"variance/at_{size}": variance for size, variance in trend.variances.items()}
    if trend.slope is not None:
        low, high = trend.slope.interval
        row |= {"variance/slope": trend.slope.value, "variance/slope_low": low, "variance/slope_high": high}
    return row
