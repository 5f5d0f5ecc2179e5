"""The branches of `measure critical-batch`: batch sizes, rates, samples to train and to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from largebatch.batch.plan import BatchPlan
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.optim.scaled_groups import ScaledGroups


@dataclass(frozen=True)
class Branch:
    """One batch size and rate.

    Attributes:
        plan: of its global batch.
        rate_scale: its learning rate over that of the run, at the same number of samples.
        scaled: gives the groups of the optimizer what else follows its batch; None: only the rate does.
    """

    plan: BatchPlan
    rate_scale: float
    scaled: ScaledGroups | None = None


@dataclass(frozen=True)
class Design:
    """The branches of a measurement.

    Attributes:
        branches: [K][R], by batch size and rate.
        rate_factors: of the rates, [R].
        num_samples: of every branch.
        num_windows: stretches of the training order that are measured.
        num_pilots: stretches before them in which each batch size chooses its rate; 0: there is one rate.
        shares: evaluation samples of each window, pilots first.
        lr_at: samples seen -> learning rate of the run.
    """

    branches: Sequence[Sequence[Branch]]
    rate_factors: tuple[float, ...]
    num_samples: int
    num_windows: int
    num_pilots: int
    shares: Sequence[FixedSubset]
    lr_at: Callable[[int], float]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Of the branches, ascending."""
        return tuple(rates[0].plan.global_batch_size for rates in self.branches)


def shares_of(subset: FixedSubset, num_windows: int) -> list[FixedSubset]:
    """Parts of the evaluation samples, one for each window: windows are then independent of each other."""
    return [replace(subset, ids=ids) for ids in np.array_split(subset.ids, num_windows)]
