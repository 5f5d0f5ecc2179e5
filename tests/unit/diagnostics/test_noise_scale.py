"""The noise scale of gradients with a known mean and covariance: unbiased moments, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.diagnostics import NoiseScale, NoiseScaleEstimator, moments_of_step

DIM = 30


def measure(rng: np.random.Generator, mean: np.ndarray, scale: np.ndarray, sizes: list[int]) -> tuple[float, float]:
    """One step on samples with gradients mean + scale * normal."""
    grads = [(mean + scale * rng.standard_normal((size, DIM))).mean(axis=0) for size in sizes]
    whole = sum(size * grad for size, grad in zip(sizes, grads, strict=True)) / sum(sizes)
    weighted = sum(size * float(grad @ grad) for size, grad in zip(sizes, grads, strict=True))
    return moments_of_step(weighted, float(whole @ whole), num_micro_batches=len(sizes), global_batch_size=sum(sizes))


@pytest.mark.parametrize("sizes", [[4, 4], [8, 8, 8, 8], [5, 3, 1, 7]], ids=str)
def test_moments_are_unbiased_for_equal_and_unequal_micro_batches(sizes):
    rng = np.random.default_rng(0)
    mean, scale = rng.standard_normal(DIM) * 0.3, rng.uniform(0.2, 2.0, DIM)
    found = np.array([measure(rng, mean, scale, sizes) for _ in range(4000)])
    truth = np.array([float((scale**2).sum()), float(mean @ mean)])
    error = (found.mean(axis=0) - truth) / (found.std(axis=0) / math.sqrt(len(found)))
    assert np.abs(error).max() < 4  # standard errors
    assert (found[:, 1] < 0).any() or sizes != [4, 4], "single steps are not clamped"


def test_equal_micro_batches_give_the_estimator_of_two_batch_sizes():
    """McCandlish et al. 2018, appendix A.1, from mean |g|^2 of the small and |g|^2 of the large batch."""
    small, big, b, n = 5.0, 2.0, 4, 3
    trace, grad_sq_norm = moments_of_step(n * b * small, big, num_micro_batches=n, global_batch_size=n * b)
    assert grad_sq_norm == pytest.approx((n * b * big - b * small) / (n * b - b))
    assert trace == pytest.approx((small - big) / (1 / b - 1 / (n * b)))


def estimates_of_autoregressive_measurements(correlation: float, length: int, replications: int) -> list[NoiseScale]:
    """Of series that follow an AR(1) around known means, with the ratio 50."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((length + 100, replications, 2)) * math.sqrt(1 - correlation**2)
    for step in range(1, len(noise)):
        noise[step] += correlation * noise[step - 1]
    trace_noise, norm_noise = noise[100:].transpose(2, 1, 0)
    estimates = []
    for pairs in np.stack([10 + 2 * trace_noise, 0.2 + 0.1 * (0.5 * trace_noise + norm_noise)], axis=2).tolist():
        estimator = NoiseScaleEstimator(window=length)
        for pair in pairs:
            estimator.add(*pair)
        estimate = estimator.estimate()
        assert estimate is not None
        estimates.append(estimate)
    return estimates


def covers(estimate: NoiseScale, truth: float) -> bool:
    return estimate.interval is not None and estimate.interval[0] <= truth <= estimate.interval[1]


CASES = [(0.0, 20), (0.0, 200), (0.3, 40), (0.6, 60), (0.6, 200), (0.8, 100), (0.8, 200), (0.9, 200)]


@pytest.mark.parametrize(("correlation", "length"), CASES)
def test_intervals_cover_the_truth_in_93_to_97_of_100_cases_with_autocorrelation_too(correlation, length):
    """1500 replications: the share is known to 0.6 %."""
    known = [one for one in estimates_of_autoregressive_measurements(correlation, length, 1500) if one.interval]
    assert len(known) / 1500 > 0.9, "there is evidence"
    assert 0.93 <= sum(covers(one, 50.0) for one in known) / len(known) <= 0.97


def test_measurements_that_hang_together_are_not_enough_evidence():
    """40 measurements of an AR(1) of 0.99 are worth a fifth of an independent one."""
    estimates = estimates_of_autoregressive_measurements(0.99, 40, 1000)
    assert sum(one.interval is None for one in estimates) > 700
    hanging = NoiseScaleEstimator()
    for step in range(40):
        hanging.add(10.0 + step / 40, 1.0)
    estimate = hanging.estimate()
    assert estimate is not None
    assert estimate.interval is None, "a drift is no scatter"


def test_coverage_from_gradients_themselves():
    rng = np.random.default_rng(2)
    mean, scale = rng.standard_normal(DIM) * 0.5, rng.uniform(0.2, 2.0, DIM)
    truth = float((scale**2).sum() / (mean @ mean))
    covered = 0
    for _ in range(600):
        estimator = NoiseScaleEstimator()
        for _ in range(60):
            estimator.add(*measure(rng, mean, scale, [4, 4, 4, 4]))
        estimate = estimator.estimate()
        assert estimate is not None
        assert estimate.interval is not None
        covered += estimate.interval[0] <= truth <= estimate.interval[1]
    assert 0.93 <= covered / 600 <= 0.97


def test_without_a_signal_there_is_not_enough_evidence():
    rng = np.random.default_rng(3)
    told = 0
    for _ in range(200):
        estimator = NoiseScaleEstimator()
        for _ in range(100):
            estimator.add(*measure(rng, np.zeros(DIM), np.ones(DIM), [4, 4]))
        estimate = estimator.estimate()
        assert estimate is not None
        told += estimate.value is not None
    assert told / 200 <= 0.05  # 2.5 % by chance: the interval of |G|^2 then excludes 0


def test_the_ratio_of_means_is_not_the_mean_of_ratios():
    estimator = NoiseScaleEstimator()
    for number in range(20):
        estimator.add(10.0 + number % 2 * 2.0, 1.0 + number % 2 * 1.0)
    estimate = estimator.estimate()
    assert estimate is not None
    assert estimate.value == pytest.approx(11 / 1.5)
    assert estimate.value != pytest.approx((10 / 1 + 12 / 2) / 2)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_constant_measurements_are_known_exactly(trace, grad_sq_norm):
    estimator = NoiseScaleEstimator()
    assert estimator.estimate() is None
    for count in range(1, 22):
        estimator.add(trace, grad_sq_norm)
        estimate = estimator.estimate()
        assert estimate is not None
        assert (estimate.value is not None) == (count >= 20)
    assert estimate.value == pytest.approx(trace / grad_sq_norm)
    assert estimate.interval == pytest.approx((trace / grad_sq_norm,) * 2, rel=1e-6)


def test_old_measurements_are_forgotten_and_broken_ones_left_out():
    estimator = NoiseScaleEstimator(window=20)
    for _ in range(20):
        estimator.add(1.0, 1.0)
    for _ in range(20):
        estimator.add(8.0, 1.0)
    estimator.add(math.inf, 1.0)
    estimator.add(1.0, math.nan)
    estimate = estimator.estimate()
    assert estimate is not None
    assert (estimate.num_measurements, estimate.value) == (20, 8.0)


def test_efficiencies_by_hand():
    scale = NoiseScale(300.0, 3.0, 10, 100.0, (80.0, 120.0))
    assert scale.sample_efficiency(300) == pytest.approx(0.25)
    assert scale.step_efficiency(300) == pytest.approx(0.75)
    assert NoiseScale(1.0, -1.0, 10).sample_efficiency(4) is None


def test_one_micro_batch_says_nothing_about_noise():
    with pytest.raises(ValueError, match="num_micro_batches=1"):
        moments_of_step(1.0, 1.0, num_micro_batches=1, global_batch_size=4)


@pytest.mark.parametrize("power", [-300, 600])
def test_the_ratio_and_its_interval_have_no_scale(power: int):
    """Bit for bit, as powers of two are exact: gradients of a run that diverges in float64 have no squares."""
    pairs = np.random.default_rng(3).normal([10.0, 0.2], [2.0, 0.02], (60, 2))
    usual, scaled = NoiseScaleEstimator(), NoiseScaleEstimator()
    for one, other in zip(pairs.tolist(), np.ldexp(pairs, power).tolist(), strict=True):
        usual.add(*one)
        scaled.add(*other)
    known, found = usual.estimate(), scaled.estimate()
    assert known is not None
    assert found is not None
    assert known.interval is not None
    assert (found.value, found.interval) == (known.value, known.interval)
