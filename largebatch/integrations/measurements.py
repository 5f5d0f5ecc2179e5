"""What the callbacks measure, whatever the trainer: the noise scale, and the steps of each layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from largebatch.diagnostics import NoiseTracker
from largebatch.optim import StepTelemetry, TensorStep, row_of_layers, summary_of

Layers = Literal["all", "summary", "none"]


class LoopMeasurements:
    """Measurements of one training, and their rows.

    Args:
        tracker: of the noise scale.
        module: whose names the layers have.
        optimizers: of its parameters.
        layers: whether trust ratios and relative updates are logged of each layer, as quantiles over layers, or not.
        is_due: whether the next step's layers are measured; rank 0 alone asks.
    """

    def __init__(
        self,
        tracker: NoiseTracker,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        layers: Layers,
        is_due: Callable[[], bool],
    ) -> None:
        self.tracker, self._module, self._layers = tracker, module, layers
        is_main = not dist.is_initialized() or dist.get_rank() == 0
        measured = optimizers if is_main and layers != "none" else ()
        self._telemetry = [StepTelemetry(one, is_due) for one in measured]

    def row(self) -> dict[str, float]:
        """What is known by now: the noise scale, and the layers of a step since the last row."""
        row: dict[str, float] = {}
        with contextlib.suppress(ValueError):  # nothing could be measured: the tracker has told the reason
            if (scale := self.tracker.noise_scale) is not None:
                latest = self.tracker.latest
                row |= scale.row(None if latest is None else latest.num_samples)
        steps: dict[Any, TensorStep] = {}
        for one in self._telemetry:
            steps |= one.take()
        if steps:
            row |= summary_of(list(steps.values()))
            if self._layers == "all":
                row |= row_of_layers(steps, self._module.named_parameters())
        return row

    def close(self) -> None:
        """Leave model and optimizers alone."""
        self.tracker.close()
        for one in self._telemetry:
            one.close()


def require_layers(layers: str) -> None:
    """Raise ValueError for an unknown choice."""
    if layers not in ("all", "summary", "none"):
        raise ValueError(f"layers={layers!r}: choose all, summary or none.")
