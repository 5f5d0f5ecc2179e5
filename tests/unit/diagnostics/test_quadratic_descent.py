"""Momentum, averages, preconditioners on the noisy quadratic: other recursions, a simulation, published claims."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.diagnostics.closed_forms import (
    Descent,
    NoisyQuadratic,
    best_rate,
    expected_losses,
    preconditioned,
    steps_to_loss,
)

CURVATURE = 1 / np.arange(1, 201, dtype=np.float64)
ZHANG = NoisyQuadratic(CURVATURE, CURVATURE)  # c = h, as in Zhang et al. 2019, with fewer dimensions
START = np.ones(200)


def test_without_an_average_the_losses_are_those_of_the_second_moments():
    """`second_moments` is another computation, which the training loop is held to."""
    task, theta = NoisyQuadratic([1.0, 0.3], [0.5, 2.0]), [1.0, -2.0]
    moments = task.second_moments(theta, lr=0.4, num_steps=40, global_batch_size=8, momentum=0.7)
    found = expected_losses(task, theta, Descent(0.4, momentum=0.7), num_steps=40, global_batch_size=8)
    np.testing.assert_allclose(found, 0.5 * moments @ task.curvature, rtol=1e-12)


def test_a_simulation_of_all_three_together_has_the_expected_losses():
    """20,000 paths; the mean loss of so many has a standard error of its own, of which 5 are allowed."""
    task, theta, batch = NoisyQuadratic([1.0, 0.25], [2.0, 1.0]), np.array([1.0, 3.0]), 4
    descent = Descent(0.5, momentum=0.6, ema=0.8, power=0.5)
    rng, h = np.random.default_rng(0), task.curvature
    paths = np.broadcast_to(theta, (20_000, 2)).copy()
    velocity, average = np.zeros_like(paths), paths.copy()
    expected = expected_losses(task, theta, descent, num_steps=25, global_batch_size=batch)
    for step in range(1, 26):
        noise = rng.standard_normal(paths.shape) * np.sqrt(task.noise_variance / batch)
        velocity = 0.6 * velocity + h**-0.5 * (h * paths + noise)
        paths = paths - 0.5 * velocity
        average = 0.8 * average + 0.2 * paths
        losses = 0.5 * average**2 @ h
        assert abs(losses.mean() - expected[step]) < 5 * losses.std() / math.sqrt(len(losses)), step


@pytest.mark.parametrize(
    "descent",
    [Descent(0.3), Descent(0.05, momentum=0.8), Descent(0.5, ema=0.9), Descent(0.2, momentum=0.5, ema=0.7, power=0.5)],
)
def test_steps_found_by_doubling_are_the_first_of_the_course(descent: Descent):
    losses = expected_losses(ZHANG, START, descent, num_steps=600, global_batch_size=64)
    below = np.flatnonzero(losses <= 0.2)
    found = steps_to_loss(ZHANG, START, descent, target_loss=0.2, global_batch_size=64)
    assert found == (below[0] if len(below) else None)
    assert found is not None


def test_a_rate_that_grows_or_rests_above_the_target_never_reaches_it():
    assert steps_to_loss(ZHANG, START, Descent(2.1), target_loss=0.2, global_batch_size=64) is None
    assert steps_to_loss(ZHANG, START, Descent(1.0), target_loss=0.2, global_batch_size=1) is None
    assert steps_to_loss(ZHANG, START, Descent(1.0), target_loss=100.0, global_batch_size=1) == 0


def test_newton_without_noise_is_there_in_one_step_and_keeps_the_loss():
    task = NoisyQuadratic([4.0, 0.01], [0.0, 0.0])
    found = expected_losses(task, [1.0, 5.0], Descent(1.0, power=1.0), num_steps=1, global_batch_size=1)
    np.testing.assert_allclose(found, [task.loss([1.0, 5.0]), 0.0], atol=1e-15)
    assert preconditioned(task, 1.0).curvature.tolist() == [1.0, 1.0]


def test_the_best_rate_is_no_worse_than_any_of_a_grid():
    _, steps = best_rate(ZHANG, START, target_loss=0.1, global_batch_size=32, momentum=0.5)
    rates = np.geomspace(1e-2, 2.9, 100)
    tried = [steps_to_loss(ZHANG, START, Descent(r, 0.5), target_loss=0.1, global_batch_size=32) for r in rates]
    assert steps <= 1.005 * min(one for one in tried if one is not None)
    with pytest.raises(ValueError, match="no rate reaches it"):
        best_rate(ZHANG, START, target_loss=-1.0, global_batch_size=32)
    with pytest.raises(ValueError, match="float64 does not resolve"):
        steps_to_loss(ZHANG, START, Descent(1e-15), target_loss=0.1, global_batch_size=32)


def test_the_claims_of_zhang_et_al_2019_hold_in_closed_form():
    """Their sections 3 and 4, abstract: momentum and preconditioning pay at large batches, averages at small ones."""

    def steps(batch: int, **method: float) -> int:
        return best_rate(ZHANG, START, target_loss=0.02, global_batch_size=batch, **method)[1]

    small, large = 1, 65536
    assert steps(small, momentum=0.9) == pytest.approx(steps(small), rel=0.02)
    assert steps(large, momentum=0.9) < 0.5 * steps(large)
    assert steps(16, ema=0.99) < 0.5 * steps(16)
    assert steps(large, ema=0.9) > 0.98 * steps(large)
    gain = {power: steps(64, power=power) / steps(4096, power=power) for power in (0.0, 0.5)}
    assert gain[0.5] > 2 * gain[0.0], "a preconditioner scales further"
    rates = [best_rate(ZHANG, START, target_loss=0.02, global_batch_size=size)[0].lr for size in (1, 4, 16384, 65536)]
    assert rates[1] / rates[0] == pytest.approx(4, rel=0.05)
    assert rates[3] / rates[2] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("given", "problem"), [({"momentum": 1.0}, "momentum=1"), ({"ema": -0.1}, "ema=-0.1"),
                                                ({"power": 1.5}, "power=1.5"), ({"lr": 0.0}, "lr=0")])  # fmt: skip
def test_an_optimizer_out_of_range_is_refused(given: dict[str, float], problem: str):
    with pytest.raises(ValueError, match=problem):
        Descent(**{"lr": 0.1, **given})
