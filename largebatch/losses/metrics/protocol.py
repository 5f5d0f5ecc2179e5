"""The interface of a metric: sums of each sample, and the value of the sums over all samples."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from largebatch.losses.metrics.torchmetrics import SummedStates
from largebatch.losses.protocol import Loss

_MEMBERS = ("sums", "value", "higher_is_better")


class Metric(Protocol):
    """A metric of your own is a class like this one, the root of the mean squared error:

        class RootMeanSquare:
            higher_is_better = False

            def sums(self, outputs, targets):
                squares = (outputs - targets).square().flatten(1)
                return torch.stack([squares.sum(1), torch.full_like(squares[:, 0], squares.shape[1])], dim=1)

            def value(self, sums):
                return float(sums[0] / sums[1]) ** 0.5

    Every sample is counted once, whatever the batches and the ranks, and sums are added in float64. Hence the metric is
    exact: it is no mean over batches. An optional `for_loss(loss)` returns the metric for a run with this loss.
    """

    higher_is_better: bool

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """What each sample adds, [n, k]; k is the same for every batch."""

    def value(self, sums: Tensor) -> float:
        """The metric of the sums over all samples, float64 [k] on the CPU; NaN where it is not defined."""


M = TypeVar("M", bound=Metric)


@runtime_checkable
class _OfALoss(Protocol):
    def for_loss(self, loss: Loss) -> Metric: ...


def for_loss(metric: Metric, loss: Loss) -> Metric:
    """The metric for a run with this loss: one that asks how the loss reads labels is told, others stay."""
    return metric.for_loss(loss) if isinstance(metric, _OfALoss) else metric


def as_metric(made: Any) -> Metric:
    """A metric, or an object of torchmetrics as one.

    Raises:
        ValueError: if it is neither, or has states that are no sums.
    """
    if SummedStates.fits(made):
        return SummedStates(made)
    absent = [name for name in _MEMBERS if not hasattr(made, name)]
    if absent:
        raise ValueError(
            f"{type(made).__name__} has no {' and no '.join(absent)}. A metric has sums(outputs, targets) -> [n, k], "
            "value(sums) -> float and higher_is_better: see `largebatch.losses.metrics.Metric`, ten lines. Objects of "
            "torchmetrics whose states are sums are taken as they are."
        )
    if not isinstance(made.higher_is_better, bool):
        raise ValueError(f"{type(made).__name__}.higher_is_better={made.higher_is_better!r}: must be True or False.")
    metric: Metric = made
    return metric
