"""Trust ratios and relative updates, layer by layer: how much of the learning rate each layer really gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from largebatch.optim import TensorStep, tensor_steps, weights_of
from largebatch.records.trackers import Row, Tracker
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport

_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


class LayersObserver(Observer):
    """Every `every` steps: a row of quantiles over layers for the trackers, and one of all layers for layers.jsonl.

    Rank 0 measures, with a copy of the weights during these steps; the others, and other steps, pay nothing.
    `trust_ratio/*` are over tensors that adapt, `update_to_weight/*` over all that have a gradient and were not zero.

    Args:
        rows: for the summary row.
        tracker: of layers.jsonl, on rank 0; None on other ranks.
        every: steps between measurements.
    """

    def __init__(self, rows: RowLog, tracker: Tracker | None, *, every: int) -> None:
        self._rows = rows
        self._tracker = tracker
        self._every = every
        self._before: dict[Tensor, Tensor] = {}
        self._latest: dict[Tensor, TensorStep] = {}
        self._handles: list[Any] = []

    def on_start(self, run: Run) -> None:
        """Ask the optimizer to be called before and after its steps."""
        if self._tracker is None:
            return

        def before(optimizer: Optimizer, *_: Any) -> None:
            if run.steps.number % self._every == 0:
                self._before = weights_of(optimizer)

        def after(optimizer: Optimizer, *_: Any) -> None:
            if self._before:
                self._latest = tensor_steps(optimizer, self._before)
                self._before = {}

        self._handles = [
            run.optimizer.register_step_pre_hook(before),
            run.optimizer.register_step_post_hook(after),
        ]

    def after_step(self, run: Run, report: StepReport) -> None:
        """Log what was measured; nothing, if a loss scaler left the step out."""
        if self._tracker is None or not self._latest:
            return
        steps, self._latest = self._latest, {}
        self._rows.log(run.progress, summary_of(list(steps.values())))
        row: Row = {"step": report.step, "samples_seen": report.samples_seen}
        for name, parameter in run.module.named_parameters():
            if (step := steps.get(parameter)) is not None:
                row[f"update_to_weight/{name}"] = step.update_to_weight
                if step.ratio is not None:
                    row[f"trust_ratio/{name}"] = step.ratio
        self._tracker.log(row)

    def on_end(self, run: Run, status: str) -> None:
        """Leave the optimizer alone."""
        for handle in self._handles:
            handle.remove()


def summary_of(steps: Sequence[TensorStep]) -> Row:
    """Quantiles over layers, and the shares of ratios that are bounded or 1 for want of a norm."""
    # Of a tensor that was zero the relative change is infinite, which says nothing of the others.
    row = _quantiles("update_to_weight", [one for step in steps if math.isfinite(one := step.update_to_weight)])
    adapting = [step for step in steps if step.ratio is not None]
    if adapting:
        row |= _quantiles("trust_ratio", [step.ratio for step in adapting if step.ratio is not None])
        row["trust_ratio/clipped_share"] = sum(step.is_clipped for step in adapting) / len(adapting)
        row["trust_ratio/fallback_share"] = sum(step.is_fallback for step in adapting) / len(adapting)
    return row


def _quantiles(name: str, values: Sequence[float]) -> Row:
    if not values:
        return {}
    found = np.quantile(np.asarray(values), list(_QUANTILES.values()))
    return {f"{name}/{label}": float(value) for label, value in zip(_QUANTILES, found, strict=True)}
