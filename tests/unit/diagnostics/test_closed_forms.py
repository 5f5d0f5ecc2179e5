"""Closed forms against enumeration, automatic differentiation and brute force; the tasks have the promised moments."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from largebatch.batch.order import SampleOrder
from largebatch.data import linear_regression, noisy_quadratic
from largebatch.diagnostics.closed_forms import GradientNoise, LeastSquares, NoisyQuadratic
from largebatch.losses import OutputIsLoss, SquaredError
from largebatch.models import Linear, Quadratic
from largebatch.run.prepare import prepare
from tests.sums import assert_same_sums
from tests.unit.composing import compose_run

H = [1.0, 0.3, 0.05]
C = [2.0, 0.1, 0.4]
START = [1.0, -2.0, 0.5]
QUADRATIC = NoisyQuadratic(H, C)


def regression(num_samples: int = 200) -> LeastSquares:
    data = linear_regression(num_samples, 10, "train", noise=0.5)
    return LeastSquares(data.inputs, data.targets)


def some_weights() -> np.ndarray:
    return np.random.default_rng(0).normal(size=11)


def autograd_gradients(model: nn.Module, loss: Any, data: Any) -> np.ndarray:
    """Per-sample gradients [D, p] of a float64 model, by torch.func."""
    parameters = dict(model.named_parameters())

    def value(parameters: Any, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        outputs = functional_call(model, parameters, (inputs[None],))
        return loss.loss_per_sample(outputs, target[None])[0]

    found = vmap(grad(value), in_dims=(None, 0, 0))(parameters, data.inputs.double(), data.targets.double())
    return torch.cat([part.flatten(1) for part in found.values()], dim=1).detach().numpy()


# --- the noise of gradients


def test_linear_regression_has_the_gradients_that_autograd_finds():
    data, task = linear_regression(200, 10, "train", noise=0.5), regression()
    model = Linear(10, 1).double()
    weights = np.concatenate([model.head.weight.detach().numpy()[0], model.head.bias.detach().numpy()])
    gradients = autograd_gradients(model, SquaredError(), data)
    np.testing.assert_allclose(task.sample_gradients(weights), gradients, rtol=1e-10, atol=1e-12)
    ours, theirs = task.gradient_noise(weights), GradientNoise.of_sample_gradients(gradients)
    assert ours.covariance_trace == pytest.approx(theirs.covariance_trace, rel=1e-10)
    assert ours.grad_sq_norm == pytest.approx(theirs.grad_sq_norm, rel=1e-10)
    assert ours.simple_noise_scale == pytest.approx(np.trace(np.cov(gradients.T, ddof=0)) / theirs.grad_sq_norm)


def test_the_noisy_quadratic_has_the_gradients_that_autograd_finds():
    data = noisy_quadratic(50, C, "train")
    gradients = autograd_gradients(Quadratic(H, start=START).double(), OutputIsLoss(), data)
    assert_same_sums(gradients.mean(axis=0), QUADRATIC.gradient(START), terms=np.abs(gradients).max())
    np.testing.assert_allclose(np.cov(gradients.T, ddof=0), np.diag(C), rtol=1e-10, atol=1e-12)
    ours = QUADRATIC.gradient_noise(START, num_samples=50)
    theirs = GradientNoise.of_sample_gradients(gradients)
    assert ours.covariance_trace == pytest.approx(theirs.covariance_trace, rel=1e-10)
    assert ours.grad_sq_norm == pytest.approx(theirs.grad_sq_norm, rel=1e-10)


def small_set() -> tuple[np.ndarray, GradientNoise]:
    gradients = np.random.default_rng(1).normal(size=(6, 3)) + 1.0
    return gradients, GradientNoise.of_sample_gradients(gradients)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_variance_of_a_mini_batch_is_that_of_all_mini_batches(replacement: bool):
    """Every batch of 3 out of 6 samples, in every order: no Monte Carlo, so equal up to rounding."""
    gradients, noise = small_set()
    every = itertools.product(range(6), repeat=3) if replacement else itertools.permutations(range(6), 3)
    means = np.array([gradients[list(batch)].mean(axis=0) for batch in every])
    variance = np.mean(((means - gradients.mean(axis=0)) ** 2).sum(axis=1))
    assert noise.mini_batch_variance(3, replacement=replacement) == pytest.approx(variance, rel=1e-12)
    sq_norm = np.mean((means**2).sum(axis=1))
    assert noise.mini_batch_sq_norm(3, replacement=replacement) == pytest.approx(sq_norm, rel=1e-12)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_expectation_of_the_two_batch_estimator_is_that_over_all_batches(replacement: bool):
    """B = 4 in 2 micro-batches of 2: McCandlish et al. 2018, appendix A.1, averaged over all draws of 4 from 6."""
    gradients, noise = small_set()
    every = itertools.product(range(6), repeat=4) if replacement else itertools.permutations(range(6), 4)
    micro = gradients[np.array(list(every))].reshape(-1, 2, 2, 3).mean(axis=2)
    small, big = (micro**2).sum(axis=2).mean(), (micro.mean(axis=1) ** 2).sum(axis=1).mean()
    estimates = (small - big) / (1 / 2 - 1 / 4), (4 * big - 2 * small) / (4 - 2)
    assert noise.expected_estimates(replacement=replacement) == pytest.approx(estimates, rel=1e-12)


class WithReplacement(SampleOrder):
    """Independent draws from a set."""

    def ids(self, position: int, count: int) -> np.ndarray:
        return np.random.default_rng((self.seed, position)).integers(self.num_samples, size=count)


@pytest.mark.parametrize("order", [SampleOrder, WithReplacement])
@pytest.mark.parametrize("batch", [1, 20, 150])
def test_the_batches_of_the_training_order_have_the_known_variance(order: type[SampleOrder], batch: int):
    """The first batches of 1000 epochs: within 4 standard errors, which are those of the 1000 values themselves.

    At a batch of 150 of 200 samples the finite-population factor is 1/4, dozens of standard errors from 1.
    """
    task, weights = regression(), some_weights()
    draws = order(200, 5)
    deviations = task.sample_gradients(weights) - task.gradient(weights)
    found = np.array([((deviations[draws.ids(200 * e, batch)].mean(axis=0)) ** 2).sum() for e in range(1000)])
    known = task.gradient_noise(weights).mini_batch_variance(batch, replacement=order is WithReplacement)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - known) < 4 * error
    assert error < 0.1 * known


# --- least squares


def test_the_minimiser_has_no_gradient_and_the_hessian_is_that_of_autograd():
    task = regression()
    assert np.abs(task.gradient(task.minimiser)).max() < 1e-12
    z, y = torch.from_numpy(task.design), torch.from_numpy(task.targets)
    point = torch.from_numpy(some_weights())
    hessian = torch.autograd.functional.hessian(lambda w: 0.5 * (z @ w - y).square().mean(), point)
    np.testing.assert_allclose(task.hessian, hessian.numpy(), rtol=1e-10, atol=1e-12)
    assert task.loss(point.numpy()) == pytest.approx(float(0.5 * (z @ point - y).square().mean()), rel=1e-12)
    assert_same_sums(task.eigenvalues, np.linalg.eigvalsh(hessian.numpy()), terms=task.eigenvalues[-1])
    assert task.max_stable_lr == 2 / task.eigenvalues[-1]


def test_the_trajectory_of_least_squares_is_gradient_descent():
    task, weights = regression(), some_weights()
    path = task.trajectory(weights, lr=0.3, num_steps=40)
    for found in path:
        np.testing.assert_allclose(found, weights, rtol=0, atol=1e-12)
        weights = weights - 0.3 * task.gradient(weights)


# --- the noisy quadratic


def test_the_excess_loss_is_the_difference_of_losses_and_a_sum_over_eigenvectors():
    task = regression()
    path = np.random.default_rng(1).normal(size=(3, 4, 11))
    losses = np.array([[task.loss(weights) for weights in row] for row in path])
    excess = task.excess(path)
    assert_same_sums(excess, losses - task.loss(task.minimiser), terms=losses.max())
    np.testing.assert_allclose(0.5 * task.along_eigenvectors(path) ** 2 @ task.eigenvalues, excess, rtol=1e-12)
    assert task.excess(task.minimiser) == 0


def test_near_the_minimiser_least_squares_is_the_quadratic_of_its_curvature_and_noise():
    task = regression()
    model = task.near_minimiser()
    noise = task.gradient_noise(task.minimiser)
    assert noise.grad_sq_norm < 1e-24
    assert model.noise_variance.sum() == pytest.approx(noise.covariance_trace, rel=1e-12)
    theta = task.along_eigenvectors(some_weights())
    assert model.loss(theta) == pytest.approx(task.excess(some_weights()), rel=1e-12)
    expected = task.gradient(some_weights())
    assert_same_sums(task.eigenvectors @ model.gradient(theta), expected, terms=np.abs(expected).sum(), digits=1e-11)


def test_the_variance_after_an_epoch_is_that_over_all_shuffles():
    """4 samples in batches of 1, 2 and 4, one epoch, all 24 shuffles: equal up to rounding."""
    draws = np.array([1.0, 4.0, -2.0, 0.5])
    noise = draws - draws.mean()
    task = NoisyQuadratic([0.7], [noise.var()])
    for batch in (1, 2, 4):
        ends = []
        for shuffle in itertools.permutations(noise):
            theta = 3.0
            for mean in np.reshape(shuffle, (-1, batch)).mean(axis=1):
                theta -= 0.4 * (0.7 * theta + mean)
            ends.append(theta**2)
        setting: dict[str, Any] = {"lr": 0.4, "global_batch_size": batch}
        found = task.epoch_second_moments([3.0], num_epochs=1, num_samples=4, **setting)[1, 0]
        assert found == pytest.approx(np.mean(ends), rel=1e-12)
        kept = (1 - 0.28) ** (2 * 4 // batch) * 9
        fresh = task.second_moments([3.0], num_steps=4 // batch, **setting)[-1, 0] - kept
        factor = task.without_replacement_factor(num_samples=4, **setting)[0]
        assert factor * fresh == pytest.approx(np.mean(ends) - kept, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_moments_settle_at_the_stationary_variance(momentum: float):
    setting: dict[str, Any] = {"lr": 0.5, "global_batch_size": 4, "momentum": momentum}
    moments = QUADRATIC.second_moments(START, num_steps=2000, **setting)
    np.testing.assert_allclose(moments[-1], QUADRATIC.stationary_variance(**setting), rtol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_moments_are_those_of_the_sum_over_all_noise(momentum: float):
    """Noise of +-sqrt(c) in each of 6 steps, all 64 signs: the same recursion is exact for any distribution."""
    means, squares = [], []
    for signs in itertools.product((-1, 1), repeat=6):
        theta, velocity = np.array(START), np.zeros(3)
        for sign in signs:
            velocity = momentum * velocity + np.array(H) * theta + sign * np.sqrt(C)
            theta = theta - 0.5 * velocity
        means.append(theta)
        squares.append(theta**2)
    setting: dict[str, Any] = {"lr": 0.5, "num_steps": 6, "momentum": momentum}
    found = QUADRATIC.second_moments(START, global_batch_size=1, **setting)[-1]
    assert_same_sums(found, np.mean(squares, axis=0), terms=np.max(squares))
    found = QUADRATIC.mean_trajectory(START, **setting)[-1]
    assert_same_sums(found, np.mean(means, axis=0), terms=np.abs(means).max())


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_largest_stable_rate_divides_growth_from_decay(momentum: float):
    limit = QUADRATIC.max_stable_lr(momentum=momentum)
    ends = [
        np.abs(QUADRATIC.mean_trajectory(START, lr=limit * factor, num_steps=2000, momentum=momentum)[-1, 0])
        for factor in (0.99, 1.01)
    ]
    assert ends[0] < 1e-3 < 1e3 < ends[1]
    with pytest.raises(ValueError, match="there is no stationary variance"):
        QUADRATIC.stationary_variance(lr=limit, global_batch_size=1, momentum=momentum)


def test_the_step_count_to_a_target_is_that_of_the_recursion():
    for batch, lr in ((1, 0.02), (4, 0.1), (64, 0.5), (1024, 1.0)):
        moments = QUADRATIC.second_moments(START, lr=lr, num_steps=3000, global_batch_size=batch)
        first = int(np.argmax(0.5 * moments @ np.array(H) <= 0.05))
        assert first > 0
        assert QUADRATIC.steps_to_target(0.05, START, lr=lr, global_batch_size=batch) == first
    floor = 0.5 * float(np.array(H) @ QUADRATIC.stationary_variance(lr=0.5, global_batch_size=1))
    assert floor > 0.05
    assert QUADRATIC.steps_to_target(0.05, START, lr=0.5, global_batch_size=1, max_steps=10_000) is None
    assert QUADRATIC.steps_to_target(5.0, START, lr=0.5, global_batch_size=1) == 0


def test_a_batch_of_b_times_larger_replaces_a_decay_of_the_rate_to_first_order():
    """Smith et al. 2018: (lr/a, B) and (lr, a B) differ in stationary variance by (2 - lr h/a)/(2 - lr h)."""
    decayed = QUADRATIC.stationary_variance(lr=0.1, global_batch_size=8)
    larger = QUADRATIC.stationary_variance(lr=0.5, global_batch_size=40)
    np.testing.assert_allclose(larger / decayed, (2 - 0.1 * np.array(H)) / (2 - 0.5 * np.array(H)), rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 10, 1000])
def test_the_optimal_rate_gains_most_and_at_the_critical_batch_half_of_what_is_possible(batch: int):
    """McCandlish et al. 2018, equations 2.6 to 2.8, against the exact expectation of one step."""

    def gain(lr: float) -> float:
        after = QUADRATIC.second_moments(START, lr=lr, num_steps=1, global_batch_size=batch)[1]
        return QUADRATIC.loss(START) - 0.5 * float(np.array(H) @ after)

    best = QUADRATIC.optimal_lr(START, global_batch_size=batch)
    assert all(gain(best) > gain(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    gradient = QUADRATIC.gradient(START)
    most = float(gradient @ gradient) ** 2 / (2 * float(np.array(H) @ gradient**2))
    assert gain(best) == pytest.approx(most / (1 + QUADRATIC.critical_batch_size(START) / batch), rel=1e-10)


# --- the data sets


def test_regression_targets_are_linear_but_for_the_noise_and_the_splits_share_the_truth():
    for noise in (0.0, 0.5):
        train, validation = (linear_regression(5000, 4, split, noise=noise) for split in ("train", "validation"))
        task = LeastSquares(train.inputs, train.targets)
        other = LeastSquares(validation.inputs, validation.targets)
        # Half the noise variance; the mean of 5000 squares has a relative standard error of sqrt(2/5000) = 2 %.
        # Without noise what is left is the rounding of targets to float32.
        assert task.loss(task.minimiser) == pytest.approx(noise**2 / 2, rel=0.1, abs=1e-12)
        # Each weight of each split has a standard error of noise/sqrt(5000).
        np.testing.assert_allclose(task.minimiser, other.minimiser, atol=5 * noise * np.sqrt(2 / 5000) + 1e-6)
        assert not torch.equal(train.inputs, validation.inputs)
    small = linear_regression(10, 4, "train", noise=0.5)
    assert torch.equal(small.targets, linear_regression(5000, 4, "train", noise=0.5).targets[:10])


def test_the_noise_of_a_set_has_the_given_moments_exactly():
    for split, seed in itertools.product(("train", "validation"), (0, 1)):
        noise = noisy_quadratic(64, [3.0, 0.0, 0.5], split, seed=seed).inputs.numpy()
        assert np.abs(noise.mean(axis=0)).max() < 1e-14
        np.testing.assert_allclose(noise.T @ noise / 64, np.diag([3.0, 0.0, 0.5]), rtol=1e-13, atol=1e-14)
    assert not torch.equal(*(noisy_quadratic(64, [1.0], split).inputs for split in ("train", "validation")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_regression(10, 10, "train"), "Use at least 11 samples"),
        (lambda: linear_regression(10, 0, "train"), "at least 1 feature"),
        (lambda: linear_regression(10, 3, "train", noise=-0.1), "noise=-0.1: a standard deviation must be 0 or more"),
        (lambda: linear_regression(10, 3, "test"), "split='test'"),  # type: ignore[arg-type]
        (lambda: noisy_quadratic(3, [1.0] * 3, "train"), "at least 4 samples"),
        (lambda: noisy_quadratic(9, [1.0, -1.0], "train"), "each 0 or more"),
        (lambda: noisy_quadratic(9, [], "train"), "at least one number"),
        (lambda: Quadratic([1.0, 0.0]), "all positive"),
        (lambda: Quadratic([]), "at least one number"),
        (lambda: Quadratic([1.0, 2.0, 3.0], start=[1.0, 2.0]), "start has 2 numbers, curvature 3"),
        (lambda: Quadratic([1.0, 2.0])(torch.zeros(4, 3)), "Quadratic got inputs of shape"),
        (lambda: OutputIsLoss().loss_per_sample(torch.zeros(3, 1), torch.zeros(3)), "one loss per sample"),
        (lambda: NoisyQuadratic([1.0, 0.0], [1.0, 1.0]), "all must be positive"),
        (lambda: NoisyQuadratic([1.0], [-1.0]), "a variance must be 0 or more"),
        (lambda: NoisyQuadratic([1.0, 2.0], [1.0]), "a list of 2 numbers"),
        (lambda: QUADRATIC.second_moments(START, lr=0, num_steps=1, global_batch_size=1), "lr=0"),
        (lambda: QUADRATIC.mean_trajectory(START, lr=1, num_steps=1, momentum=1.0), "momentum=1.0"),
        (
            lambda: QUADRATIC.without_replacement_factor(lr=0.1, global_batch_size=3, num_samples=10),
            "not a multiple of global_batch_size=3",
        ),
        (lambda: GradientNoise(1, 1.0, 0.0), "num_samples=1"),
        (lambda: small_set()[1].mini_batch_variance(7, replacement=False), "at most 6"),
        (lambda: LeastSquares(np.ones((5, 1)), np.ones(5)), "rank 1 for 2 parameters"),
        (lambda: LeastSquares(np.ones((5, 1)), np.ones((5, 1))), r"must be \[N, d\] and \[N\]"),
        (lambda: regression().loss([0.0] * 10), "weights has the shape"),
    ],
)
def test_what_has_no_answer_is_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("group", ["data", "experiment"])
@pytest.mark.parametrize("name", ["linear_regression", "noisy_quadratic"])
def test_the_tasks_pass_all_checks_of_a_run(group: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = prepare(compose_run(f"{group}={name}", "logger=none", "batch.total=64"), {})
    assert run.numbers.num_samples == {"linear_regression": 1000, "noisy_quadratic": 1024}[name]
    assert len(run.validation) == run.numbers.num_samples, "both sides of the gap are whole sets"
    if group == "experiment":
        assert run.numbers.lr_at(0) == run.numbers.lr_at(5000) == run.config.scaling.base_lr
