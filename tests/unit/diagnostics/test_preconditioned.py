"""The noise scale of a preconditioned method on the noisy quadratic, against steps to a target in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.diagnostics.closed_forms import NoisyQuadratic, preconditioned

CURVATURE = 1 / np.arange(1, 101)  # Zhang et al. 2019, section 3: h_i = 1/i, and noise of the same variance
START = np.ones(100)
TARGET = 0.03
POWERS = (0.0, 0.5, 0.75)  # P = h^-p: from SGD past Adam's square root towards the inverse curvature


def fewest_steps(task: NoisyQuadratic, theta: np.ndarray, batch: int) -> float:
    """At the best constant rate of a grid."""
    target, found = TARGET * task.loss(theta), math.inf
    for lr in np.geomspace(0.01, 0.98, 24) * task.max_stable_lr():
        variance = task.stationary_variance(lr=lr, global_batch_size=batch)
        if task.curvature @ variance / 2 < 0.95 * target:
            steps = task.steps_to_target(target, theta, lr=lr, global_batch_size=batch, max_steps=2000)
            found = min(found, math.inf if steps is None else steps)
    return found


def critical_batch(task: NoisyQuadratic, theta: np.ndarray) -> float:
    """The batch that takes twice the fewest steps."""
    most = 2 * fewest_steps(task, theta, 10**9)
    sizes = np.unique(np.geomspace(10, 2000, 24).astype(int))
    return float(next(size for size in sizes if fewest_steps(task, theta, int(size)) <= most))


def test_in_the_coordinates_of_a_preconditioner_plain_noise_scales_are_the_optimizers():
    """tr(P Sigma) and G'PG, written out."""
    theta, p = np.linspace(1, 2, 100), CURVATURE**-0.5
    inside = preconditioned(NoisyQuadratic(CURVATURE, np.ones(100)), 0.5)
    noise = inside.gradient_noise(theta / np.sqrt(p), num_samples=9)
    assert noise.covariance_trace == pytest.approx(p.sum(), rel=1e-13)
    assert noise.grad_sq_norm == pytest.approx(p @ (CURVATURE * theta) ** 2, rel=1e-13)


def test_the_simple_noise_scale_of_one_step_is_exact_for_the_inverse_curvature_and_the_euclidean_one_for_its_root():
    task, theta = NoisyQuadratic(CURVATURE, np.ones(100)), START
    whitened = preconditioned(task, 1.0)
    place = theta * np.sqrt(CURVATURE)
    exact = whitened.critical_batch_size(place)
    assert whitened.gradient_noise(place, num_samples=9).simple_noise_scale == pytest.approx(exact, rel=1e-12)
    euclidean = task.gradient_noise(theta, num_samples=9).simple_noise_scale
    assert abs(math.log(euclidean / exact)) > 0.5
    rooted = preconditioned(task, 0.5).critical_batch_size(theta * CURVATURE**0.25)
    assert euclidean == pytest.approx(rooted, rel=1e-12)


def test_at_equal_weights_the_optimizers_noise_scale_follows_its_critical_batch_and_the_euclidean_one_cannot():
    """B_crit grows with the power of the preconditioner. At one point the Euclidean noise scale is one number."""
    plain, critical, scales = NoisyQuadratic(CURVATURE, CURVATURE), [], []
    for power in POWERS:
        task, place = preconditioned(plain, power), START * CURVATURE ** (power / 2)
        critical.append(critical_batch(task, place))
        scales.append(task.gradient_noise(place, num_samples=9).simple_noise_scale)
    growth, followed = np.log(np.array(critical) / critical[0]), np.log(np.array(scales) / scales[0])
    assert growth[-1] > math.log(3)
    assert np.abs(followed - growth).max() < 0.5 * growth[-1]
