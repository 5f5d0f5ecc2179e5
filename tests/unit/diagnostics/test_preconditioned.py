"""The noise scale of a preconditioned method on the noisy quadratic, against steps to a target in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.diagnostics.closed_forms import NoisyQuadratic, best_rate, preconditioned

CURVATURE = 1 / np.arange(1, 101)  # Zhang et al. 2019, section 3: h_i = 1/i, and noise of the same variance
START = np.ones(100)
TARGET = 0.01


def critical_batch(task: NoisyQuadratic, power: float) -> tuple[int, int]:
    """(fewest steps to 1 % of the first loss, the batch that takes twice as many, to 2 %), at best constant rates."""

    def steps(batch: int) -> int:
        loss = TARGET * task.loss(START)
        return best_rate(task, START, target_loss=loss, global_batch_size=batch, power=power)[1]

    fewest = steps(10**9)
    low, high = 10, 2000
    while high > 1.02 * low:
        middle = round(math.sqrt(low * high))
        low, high = (middle, high) if steps(middle) > 2 * fewest else (low, middle)
    return fewest, high


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


def test_at_equal_weights_b_crit_is_proportional_to_the_optimizers_noise_scale_and_the_euclidean_one_cannot_follow():
    """The table of diagnostics/README.md; P = h^-p goes from SGD past Adam's square root towards Newton's method."""
    task = NoisyQuadratic(CURVATURE, CURVATURE)
    assert task.gradient_noise(START, num_samples=9).simple_noise_scale == pytest.approx(3.17, abs=0.01)  # for every p
    ratios = []
    for power, fewest, b_crit, scale in ((0.0, 51, 154, 3.17), (0.5, 7, 352, 7.70), (0.75, 3, 592, 12.46)):
        inside, place = preconditioned(task, power), START * CURVATURE ** (power / 2)
        assert inside.gradient_noise(place, num_samples=9).simple_noise_scale == pytest.approx(scale, abs=0.01)
        # Both the search over rates and that over batches end at 1 to 2 %.
        assert critical_batch(task, power) == (fewest, pytest.approx(b_crit, rel=0.03))
        ratios.append(b_crit / scale)
    assert max(ratios) < 1.07 * min(ratios)
