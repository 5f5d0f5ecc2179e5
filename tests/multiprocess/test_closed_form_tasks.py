"""The package's own loop reproduces the closed forms of linear regression and of the noisy quadratic model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import keyed_uniforms, stream_key
from largebatch.data import linear_regression, noisy_quadratic
from largebatch.diagnostics.closed_forms import LeastSquares, NoisyQuadratic
from largebatch.distributed.runtime import Runtime
from largebatch.losses import OutputIsLoss, SquaredError
from largebatch.models import Linear, Quadratic
from largebatch.training.loop import Observer, Run, train
from tests.multiprocess.made_run import made_run

NUM_SAMPLES = 256
# Two kinds of 96 coordinates each: their mean squares are averages over 96 values.
EACH = 96
CURVATURE = [1.0] * EACH + [0.25] * EACH
NOISE_VARIANCE = [0.5] * EACH + [1.0] * EACH
QUADRATIC = NoisyQuadratic(CURVATURE, NOISE_VARIANCE)


@dataclass(frozen=True)
class Case:
    """A training with plain SGD at a constant rate; `fresh` draws with replacement."""

    task: str
    lr: float
    num_steps: int
    batch: int
    momentum: float = 0.0
    start: float = 1.0  # of theta
    fresh: bool = False
    seed: int = 0
    max_micro: int | None = None


class IndependentDraws(SampleOrder):
    """A set's samples drawn with replacement, as a function of (seed, position) like every order."""

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        uniforms = keyed_uniforms(stream_key(self.seed, "with replacement"), positions, 1)[:, 0]
        return (uniforms * self.num_samples).astype(np.int64)


class Path(Observer):
    """Remembers the parameters, as one vector, before the first and after every step; and the loss of every step."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.losses: list[float] = []

    def on_start(self, run: Run) -> None:
        self._remember(run)

    def after_step(self, run: Run, report: Any) -> None:
        self._remember(run)
        self.losses.append(report.mean_loss)

    def _remember(self, run: Run) -> None:
        self.points.append(torch.cat([one.detach().flatten() for one in run.module.parameters()]).numpy().copy())


def parts_of(task: str, start: float = 1.0) -> tuple[Any, Any, Any]:
    if task == "regression":
        torch.manual_seed(0)
        return linear_regression(NUM_SAMPLES, 10, "train", noise=0.5), Linear(10, 1), SquaredError()
    return noisy_quadratic(NUM_SAMPLES, NOISE_VARIANCE, "train"), Quadratic(CURVATURE, start=start), OutputIsLoss()


def path_of(case: Case) -> dict[str, Any]:
    """Train `case` in float64 on the ranks of this world: parameters [steps + 1, p], loss of every step, status."""
    with Runtime.open(precision="fp64") as runtime:
        data, model, loss = parts_of(case.task, case.start)
        plan = BatchPlan.solve(
            global_batch_size=case.batch, world_size=runtime.world_size, max_micro_batch_size=case.max_micro
        )
        order = (IndependentDraws if case.fresh else SampleOrder)(len(data), case.seed)
        path = Path()
        run = made_run(
            runtime,
            model,
            loss,
            torch.optim.SGD(model.parameters(), lr=case.lr, momentum=case.momentum),
            plan,
            data,
            lambda _: case.lr,
            case.num_steps,
            log_every=1,
            observers=[path],
            order=order,
        )
        status = train(run)
        return {"points": np.stack(path.points), "losses": path.losses, "status": status}


def regression() -> LeastSquares:
    data, _, _ = parts_of("regression")
    return LeastSquares(data.inputs, data.targets)


# --- the full set: no noise, so equal up to rounding


@pytest.mark.parametrize(("world_size", "max_micro"), [(1, None), (1, 100), (2, 50)])
def test_gradient_descent_on_linear_regression_is_the_power_of_a_matrix(ranks, world_size, max_micro):
    case = Case("regression", lr=0.1, num_steps=40, batch=NUM_SAMPLES, max_micro=max_micro)
    task = regression()
    for result in ranks(world_size).run(path_of, case):
        known = task.trajectory(result["points"][0], lr=0.1, num_steps=40)
        np.testing.assert_allclose(result["points"], known, rtol=0, atol=1e-10)
        np.testing.assert_allclose(result["losses"], [task.loss(point) for point in known[:-1]], rtol=1e-10)


def test_gradient_descent_converges_below_the_largest_stable_rate_and_diverges_above():
    """At 2/h_max (1 -+ 0.02) the steepest direction shrinks or grows by 0.96 or 1.04 per step, by 2500 in 200 steps.

    The loss grows by the square of that, from the thousandth that lies in this direction at the start.
    """
    task, ends = regression(), []
    for factor in (0.98, 1.02):
        case = Case("regression", lr=factor * task.max_stable_lr, num_steps=200, batch=NUM_SAMPLES)
        points = path_of(case)["points"]
        known = task.trajectory(points[0], lr=case.lr, num_steps=200)
        # Rounding grows as the path does: compare with its size.
        sizes = np.maximum(np.abs(known).max(axis=1, keepdims=True), 1)
        assert np.abs((points - known) / sizes).max() < 1e-10
        ends.append([task.loss(point) - task.loss(task.minimiser) for point in (points[0], points[-1])])
    (start, converged), (_, diverged) = ends
    assert converged < 1e-6 * start < 1e3 * start < diverged


@pytest.mark.parametrize(("world_size", "momentum"), [(1, 0.0), (1, 0.9), (2, 0.9)])
def test_the_noise_of_the_quadratic_adds_up_to_nothing_over_the_full_set(ranks, world_size, momentum):
    case = Case("quadratic", lr=0.2, num_steps=30, batch=NUM_SAMPLES, momentum=momentum, max_micro=100)
    known = QUADRATIC.mean_trajectory(np.ones(2 * EACH), lr=0.2, num_steps=30, momentum=momentum)
    for result in ranks(world_size).run(path_of, case):
        np.testing.assert_allclose(result["points"], known, rtol=0, atol=1e-10)
        np.testing.assert_allclose(result["losses"], [QUADRATIC.loss(point) for point in known[:-1]], rtol=1e-10)


# --- mini-batches


def assert_mean_squares(found: np.ndarray, known: np.ndarray) -> None:
    """Squares [seeds, d] against their expectation [d], for each of the two kinds of coordinates.

    Seeds are independent and coordinates of one seed nearly so, hence the standard error is taken over the means of
    seeds. 4 of them; and they are small enough to tell the answer from its neighbours.
    """
    for kind in (slice(0, EACH), slice(EACH, 2 * EACH)):
        means = found[:, kind].mean(axis=1)
        error = means.std(ddof=1) / np.sqrt(len(means))
        assert abs(means.mean() - known[kind].mean()) < 4 * error
        assert error < 0.05 * known[kind].mean()


def squares(**setting: Any) -> np.ndarray:
    """theta^2 after every step of 16 trainings, [16, steps + 1, 2 * EACH]."""
    return np.stack([path_of(Case("quadratic", seed=seed, **setting))["points"] ** 2 for seed in range(16)])


def test_two_shuffled_epochs_leave_the_variance_of_draws_without_replacement():
    """From theta = 0, so that there is nothing but variance."""
    found = squares(lr=0.25, num_steps=32, batch=16, start=0.0)
    setting: dict[str, Any] = {"lr": 0.25, "global_batch_size": 16}
    known = QUADRATIC.epoch_second_moments(np.zeros(2 * EACH), num_epochs=2, num_samples=NUM_SAMPLES, **setting)
    for epoch in (1, 2):
        assert_mean_squares(found[:, 16 * epoch], known[epoch])
    fresh = QUADRATIC.second_moments(np.zeros(2 * EACH), num_steps=32, **setting)[-1]
    assert np.all(known[2] < 0.75 * fresh), "several errors away: that nothing is drawn twice is visible"


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_draws_with_replacement_follow_the_recursion_of_fresh_noise(momentum: float):
    found = squares(lr=0.25, num_steps=32, batch=16, momentum=momentum, fresh=True)
    setting: dict[str, Any] = {"lr": 0.25, "global_batch_size": 16, "momentum": momentum}
    known = QUADRATIC.second_moments(np.ones(2 * EACH), num_steps=32, **setting)
    for step in (1, 8, 32):
        assert_mean_squares(found[:, step], known[step])
    # The steep coordinates forget their start (0.75^32 = 1e-4) and have settled; with momentum by 0.8^32 = 8e-4.
    settled = QUADRATIC.stationary_variance(**setting)
    assert known[32, 0] == pytest.approx(settled[0], rel=0.01)


def test_two_ranks_follow_the_same_noisy_path_as_one(ranks):
    """Two ranks with three micro-batches each draw what one process draws in one: the same noisy path."""
    case = Case("quadratic", lr=0.25, num_steps=20, batch=18, momentum=0.5, seed=3)
    alone = path_of(case)["points"]
    cut = Case("quadratic", lr=0.25, num_steps=20, batch=18, momentum=0.5, seed=3, max_micro=3)
    for result in ranks(2).run(path_of, cut):
        np.testing.assert_allclose(result["points"], alone, rtol=0, atol=1e-12)
    calm = QUADRATIC.mean_trajectory(np.ones(2 * EACH), lr=0.25, num_steps=20, momentum=0.5)
    assert np.abs(alone - calm)[1:].max(axis=1).min() > 1e-2, "the path is a noisy one"
