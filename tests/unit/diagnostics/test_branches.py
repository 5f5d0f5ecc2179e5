"""Critical batches from branches: against closed forms of the noisy quadratic, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.batch.scaling import RATE_EXPONENTS
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.diagnostics.closed_forms.branches import QuadraticBranches, point_of_run
from largebatch.diagnostics.critical_batch.branches import Branches, Crossing, _mean_interval, doubling_without_noise

CURVATURE = np.array([1.0, 0.5, 0.25, 0.125])
TASK = NoisyQuadratic(CURVATURE, CURVATURE)
SIZES = (8, 12, 16, 24, 32, 48, 64)


def quadratic(*, rule: str = "sqrt", momentum: float = 0.0, lr: float = 0.1, num_steps: int = 20) -> QuadraticBranches:
    point = point_of_run(TASK, [1.0] * 4, lr=lr, batch_size=8, num_steps=num_steps, momentum=momentum, seed=0)
    return QuadraticBranches(TASK, *point, momentum, lr, rule, SIZES, 384)


def shifted(rises: list[float], *, half: float, spread: float = 0.0) -> Branches:
    """Six windows whose losses differ from the smallest batch's by `rises`, plus or minus `spread`."""
    losses = np.tile(np.array(rises), (6, 1)) + np.outer([1, -1, 2, -2, 0, 0], [0.0, *[spread] * (len(rises) - 1)])
    level = np.array([1.0, 1.4, 0.9, 1.1, 1.2, 1.3])  # common to all branches of a window: cancels
    return Branches((10, 20, 30, 40)[: len(rises)], losses + level[:, None], level + half, 120)


def test_losses_on_a_parabola_cross_where_the_parabola_does():
    found = shifted([0.0, 0.01, 0.04, 0.09], half=0.0225)  # (B - 10)^2 / 10^4
    assert found.tolerated(0.0625).value == pytest.approx(35.0, rel=1e-5)
    assert found.doubling().value == pytest.approx(25.0, rel=1e-5)
    assert (found.tolerated(0.0625).low, found.tolerated(0.0625).high) == pytest.approx((35.0, 35.0)), "no spread"


def test_the_interval_holds_the_batches_at_which_the_threshold_is_within_that_of_the_rise():
    found = shifted(
        [0.0, 0.1, 0.2, 0.3], half=0.15, spread=0.02
    )  # a straight line, with a spread beyond the first size
    crossing = found.tolerated(0.25)  # between 30 and 40, where the parabola goes through three sizes of one spread
    half_width = 2.5705818 * 0.02 * math.sqrt(10 / 5) / math.sqrt(6)  # Student's with 5 degrees of freedom, no skewness
    assert crossing.value == pytest.approx(35.0, rel=1e-4)
    assert (crossing.low, crossing.high) == pytest.approx((35 - 100 * half_width, 35 + 100 * half_width), rel=1e-4)
    assert found.tolerated(1.0) == Crossing(None, 40.0, None), "above the largest"
    assert shifted([0.0, 0.1, 0.2, 0.3], half=0.0, spread=0.02).doubling().low is None, "no progress, no B_crit"
    assert shifted([0.0, 0.1, 0.2], half=-0.1).doubling() == Crossing(None, None, 10.0), "the loss rises"


def test_a_diverged_branch_is_a_large_loss_and_no_mean_of_its_own():
    rises = [0.0, 0.01, 0.04, math.inf]
    found = shifted(rises, half=0.03)
    assert 30 < found.tolerated(0.05).value < 40
    assert found.tolerated(0.05).high < 40
    assert found.doubling().value == pytest.approx(shifted(rises[:3], half=0.03).doubling().value, rel=1e-9)
    with pytest.raises(ValueError, match="smallest batch, 10, diverged"):
        shifted([math.nan, 0.1, 0.2, 0.3], half=0.1)


def test_the_interval_of_a_mean_is_right_for_skewed_values():
    squares = np.random.default_rng(0).standard_normal((12, 4000)) ** 2
    _, low, high = _mean_interval(squares)
    covered = np.mean((low <= 1) & (high >= 1))
    assert 0.93 < covered < 0.96, "Student's own interval holds the mean in 87 %"


@pytest.mark.parametrize(("rule", "expected"), [("sqrt", 32.0), ("none", 16.0)])
def test_without_noise_the_doubling_is_that_of_the_rates(rule, expected):
    quiet = NoisyQuadratic(CURVATURE, 1e-9 * CURVATURE)
    exact = QuadraticBranches(quiet, np.ones(4), np.zeros(4), 0.0, 1e-3, rule, SIZES, 768)
    assert exact.crossing(exact.halfway) == pytest.approx(expected, rel=0.01)  # steps of 0.1 % of the way
    assert doubling_without_noise(8, RATE_EXPONENTS[rule]) == expected


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_simulated_branches_have_the_expected_losses(momentum):
    exact = quadratic(momentum=momentum, lr=0.1 * (1 - momentum))
    drawn = exact.draw(np.random.default_rng(1), num_windows=500, num_evaluated=64)
    for place, size in enumerate(SIZES):
        losses = drawn.losses[:, place]
        error = losses.std() / math.sqrt(len(losses))
        assert abs(losses.mean() - exact.expected_loss(384 // size)) < 4.5 * error, size
    error = drawn.halfway.std() / math.sqrt(500)
    assert abs(drawn.halfway.mean() - exact.halfway) < 4.5 * error
    assert drawn.tolerated(0.01).value == pytest.approx(exact.crossing(exact.smallest + 0.01), rel=0.2)


def test_intervals_hold_the_true_critical_batch():
    """A short `largebatch bench critical-batch`: of 100 intervals of 95 % at least 85 hold (4.6 standard errors)."""
    exact, generator = quadratic(), np.random.default_rng(2)
    truth = exact.crossing(exact.halfway), exact.crossing(exact.smallest + 0.005)
    assert all(SIZES[0] < one < SIZES[-1] for one in truth)
    held = np.zeros(2, dtype=int)
    for _ in range(100):
        drawn = exact.draw(generator, num_windows=12, num_evaluated=256)
        for place, found in enumerate((drawn.doubling(), drawn.tolerated(0.005))):
            low, high = found.low or 0.0, math.inf if found.high is None else found.high
            held[place] += low <= truth[place] <= high
    assert (held >= 85).all(), held
