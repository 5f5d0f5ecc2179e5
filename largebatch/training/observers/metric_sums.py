"""Sums of metrics over an evaluated set, shared among ranks that may have no sample of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from largebatch.distributed.gather import gather_ints
from largebatch.distributed.runtime import Runtime
from largebatch.losses.metrics import Metric


class MetricSums:
    """Adds up the sums of metrics, by name, over the batches of this rank.

    Attributes:
        metrics: by name.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = metrics
        self._sums: dict[str, Tensor] = {}

    def add(self, outputs: Any, targets: Tensor) -> None:
        """Count a batch."""
        for name, metric in self.metrics.items():
            rows = checked_sums(metric, outputs, targets).double().sum(dim=0)
            if name in self._sums and self._sums[name].shape != rows.shape:
                raise ValueError(
                    f"metrics.{name}: sums of {len(self._sums[name])} and of {len(rows)} numbers per sample: k must be "
                    "the same for every batch."
                )
            self._sums[name] = self._sums[name] + rows if name in self._sums else rows

    def vector(self, runtime: Runtime) -> Tensor:
        """All sums of this rank one after the other, float64, of the same length on every rank. All ranks call it."""
        if not self.metrics:
            return torch.zeros(0, dtype=torch.float64, device=runtime.device)
        own = [len(self._sums[name]) if name in self._sums else 0 for name in self.metrics]
        found = gather_ints(runtime, torch.tensor(own, device=runtime.device)).tolist()
        self._widths = [max(column) for column in zip(*found, strict=True)]
        for name, widths, width in zip(self.metrics, zip(*found, strict=True), self._widths, strict=True):
            if any(one not in (0, width) for one in widths):
                raise ValueError(f"metrics.{name}: ranks have sums of {sorted(set(widths))} numbers per sample.")
        return torch.cat(
            [
                self._sums.get(name, torch.zeros(width, device=runtime.device)).double()
                for name, width in zip(self.metrics, self._widths, strict=True)
            ]
        )

    def values(self, total: Tensor) -> dict[str, float]:
        """The metrics of the vector's sum over ranks."""
        if not self.metrics:
            return {}
        parts = total.split(self._widths)
        return {name: float(one.value(part)) for (name, one), part in zip(self.metrics.items(), parts, strict=True)}


def checked_sums(metric: Metric, outputs: Any, targets: Tensor) -> Tensor:
    """`metric.sums` of a batch. Raises ValueError unless it is [n, k]."""
    rows = metric.sums(outputs, targets)
    if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != len(targets):
        shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(
            f"sums returned {shape} for {len(targets)} samples: it returns what each sample adds, [{len(targets)}, k]."
        )
    return rows.detach()
