"""Runs to a target loss on the noisy quadratic, at the rate with which its closed form needs the fewest steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.experiments.textbook.bands import band_of_mean
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.weight_path import Float64Array, WeightPath
from largebatch.run.config.reading import ConfigError

_RATES = 60  # tried, up to the largest stable one, for the rate that needs the fewest steps
_LONGER = 1.3  # runs go on after the expected number of steps, to see where the loss gets there


@dataclass(frozen=True)
class Descent:
    """Runs to one target at one batch size, one per seed.

    Attributes:
        target: eps, the loss to reach as a share of the first one.
        total: batch size.
        lr: with which the closed form needs the fewest steps.
        expected: those steps.
        expected_loss: after them, a share of the first one: at the target or below.
        measured: steps until the mean loss over seeds is at the target; None: not within the runs.
        loss: share of the first one, mean over seeds after the expected steps, with its 95 % interval.
    """

    target: float
    total: int
    lr: float
    expected: int
    expected_loss: float
    measured: int | None
    loss: tuple[float, float, float]

    @property
    def agrees(self) -> bool:
        """Whether the expected loss lies in the interval of the measured one."""
        return self.loss[1] <= self.expected_loss <= self.loss[2]


@dataclass(frozen=True)
class FullBatch:
    """Gradient descent on all samples.

    Attributes:
        lr: 2 / (h_max + h_min), for which the distance falls by (k - 1)/(k + 1) per step, k = h_max / h_min.
        losses: after every step, the start included.
        exact: of the closed form.
    """

    lr: float
    losses: Float64Array
    exact: Float64Array


def fastest_rate(
    task: NoisyQuadratic, start: Float64Array, *, target: float, global_batch_size: int
) -> tuple[float, int]:
    """The rate with which the expected loss reaches `target` in the fewest steps, of 60 below the limit; and the steps.

    >>> fastest_rate(NoisyQuadratic([1.0], [0.0]), np.ones(1), target=0.1, global_batch_size=1)[1]  # lr = 1: at once
    1
    """
    found = []
    for lr in np.geomspace(1e-4, 0.99, _RATES) * task.max_stable_lr():
        # Where the noise alone stays above the target, no number of steps reaches it.
        noise = 0.5 * task.curvature @ task.stationary_variance(lr=lr, global_batch_size=global_batch_size)
        if noise < target:
            steps = task.steps_to_target(target, start, lr=lr, global_batch_size=global_batch_size)
            if steps is not None:
                found.append((steps, float(lr)))
    if not found:
        raise ConfigError(
            [f"textbook.targets: no rate reaches a loss of {target:g} with batches of {global_batch_size}. Ask for a "
             "larger share of the first one."]
        )  # fmt: skip
    steps, lr = min(found)
    return lr, steps


def descend(
    experiment: Experiment, task: NoisyQuadratic, start: Float64Array, *, target: float, total: int, seeds: range
) -> Descent:
    """Train to `target`, a share of the first loss, with batches of `total` samples, once per seed.

    `seeds` are added to that of the config: with others for every target, their errors are independent.
    """
    first = task.loss(start)
    lr, expected = fastest_rate(task, start, target=target * first, global_batch_size=total)
    num_steps = math.ceil(_LONGER * expected) + 1
    losses = []
    for number in seeds:
        path = WeightPath()
        experiment.train(
            f"batch-{total}-target-{target:g}-{number}",
            f"batch.total={total}",
            f"length={num_steps}steps",
            f"scaling.base_lr={lr!r}",
            f"seed={experiment.config.seed + number}",
            observers=[path],
        )
        losses.append(0.5 * path.weights**2 @ task.curvature / first)
    mean, low, high = band_of_mean(losses)
    assert low is not None
    assert high is not None
    moments = task.second_moments(start, lr=lr, num_steps=expected, global_batch_size=total)
    expected_loss = 0.5 * float(moments[-1] @ task.curvature) / first
    within = np.flatnonzero(np.array(mean) <= target)
    at = (mean[expected], low[expected], high[expected])
    return Descent(target, total, lr, expected, expected_loss, int(within[0]) if within.size else None, at)


def descend_full_batch(
    experiment: Experiment, task: NoisyQuadratic, start: Float64Array, *, num_steps: int
) -> FullBatch:
    """Train on all samples in every step."""
    lr = 2 / float(task.curvature.max() + task.curvature.min())
    path = WeightPath()
    experiment.train(
        "full-batch",
        "batch.total=full",
        "batch.max_micro=null",
        f"length={num_steps}steps",
        f"scaling.base_lr={lr!r}",
        observers=[path],
    )
    exact = task.mean_trajectory(start, lr=lr, num_steps=num_steps)
    losses, known = (0.5 * theta**2 @ task.curvature for theta in (path.weights, exact))
    return FullBatch(lr, losses, known)
