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


@pytest.mark.parametrize("length", [100, 200])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_intervals_cover_the_truth_in_93_to_97_of_100_cases_with_autocorrelation_too(correlation, length):
    """1500 replications: the share is known to 0.6 %. Measurements follow an AR(1) around known means."""
    rng = np.random.default_rng(1)
    replications, truth = 1500, 50.0
    covered = known = 0
    noise = rng.standard_normal((replications, length + 50, 2)) * math.sqrt(1 - correlation**2)
    series = np.zeros_like(noise)
    for step in range(noise.shape[1]):
        series[:, step] = correlation * series[:, step - 1] + noise[:, step] if step else noise[:, step]
    for one in series[:, 50:]:
        estimator = NoiseScaleEstimator(window=length)
        for trace_noise, norm_noise in one:
            estimator.add(10.0 + 2.0 * trace_noise, 0.2 + 0.1 * (0.5 * trace_noise + norm_noise))
        estimate = estimator.estimate()
        assert estimate is not None
        if estimate.interval is not None:
            known += 1
            covered += estimate.interval[0] <= truth <= estimate.interval[1]
    assert known == replications, "the evidence is good in every replication"
    assert 0.93 <= covered / known <= 0.97


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
    for count in range(1, 12):
        estimator.add(trace, grad_sq_norm)
        estimate = estimator.estimate()
        assert estimate is not None
        assert (estimate.value is not None) == (count >= 10)
    assert estimate.value == pytest.approx(trace / grad_sq_norm)
    assert estimate.interval == pytest.approx((trace / grad_sq_norm,) * 2, rel=1e-6)


def test_old_measurements_are_forgotten_and_broken_ones_left_out():
    estimator = NoiseScaleEstimator(window=10)
    for _ in range(10):
        estimator.add(1.0, 1.0)
    for _ in range(10):
        estimator.add(8.0, 1.0)
    estimator.add(math.inf, 1.0)
    estimator.add(1.0, math.nan)
    estimate = estimator.estimate()
    assert estimate is not None
    assert (estimate.num_measurements, estimate.value) == (10, 8.0)


def test_efficiencies_by_hand():
    scale = NoiseScale(300.0, 3.0, 10, 100.0, (80.0, 120.0))
    assert scale.sample_efficiency(300) == pytest.approx(0.25)
    assert scale.step_efficiency(300) == pytest.approx(0.75)
    assert NoiseScale(1.0, -1.0, 10).sample_efficiency(4) is None


def test_one_micro_batch_says_nothing_about_noise():
    with pytest.raises(ValueError, match="num_micro_batches=1"):
        moments_of_step(1.0, 1.0, num_micro_batches=1, global_batch_size=4)
