"""The 1/B law and the moments of a sample on a linear regression whose gradient noise is known exactly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from largebatch.data import linear_regression
from largebatch.diagnostics.closed_forms import GradientNoise, LeastSquares
from largebatch.diagnostics.noise.measurement import VarianceSettings, places_of_draws
from largebatch.diagnostics.noise.nested_groups import NestedGroups, doubling_sizes, require_nested
from largebatch.diagnostics.noise.sampled_moments import SampledMoments, moments_of_sample
from largebatch.diagnostics.noise.variance_law import VarianceCurve, VariancePoint, variance_curve

NUM_SAMPLES = 1000
SIZES = [1, 5, 25, 125]
REPLICATIONS = 16
EXPERIMENTS = 600  # a share of 95 % is then known to 0.9 %


def regression() -> tuple[np.ndarray, GradientNoise]:
    """Gradient of every sample at weights where mean and noise matter, and what the closed form says of them."""
    data = linear_regression(NUM_SAMPLES, 10, "train", noise=0.5)
    task = LeastSquares(data.inputs, data.targets)
    weights = task.minimiser + np.random.default_rng(0).normal(0, 0.3, 11)
    return task.sample_gradients(weights), task.gradient_noise(weights)


GRADIENTS, NOISE = regression()


def measured(deviations: np.ndarray, draws: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Mean |g_B - G|^2 of each draw of samples [draws, largest batch], cut into groups of every size."""
    columns, means, before = [], deviations[draws], 1
    for size in sizes:
        means = means.reshape(len(draws), -1, size // before, deviations.shape[1]).mean(axis=2)
        before = size
        columns.append((means**2).sum(axis=2).mean(axis=1))
    return np.stack(columns, axis=1)


def experiments(*, replacement: bool) -> list[VarianceCurve]:
    rng = np.random.default_rng(2)
    curves = []
    for _ in range(EXPERIMENTS):
        if replacement:
            draws = rng.integers(0, NUM_SAMPLES, (REPLICATIONS, SIZES[-1]))
        else:
            draws = rng.random((REPLICATIONS, NUM_SAMPLES)).argpartition(SIZES[-1], axis=1)[:, : SIZES[-1]]
            draws = rng.permuted(draws, axis=1)
        table = measured(GRADIENTS - GRADIENTS.mean(axis=0), draws, SIZES)
        curves.append(variance_curve(table, SIZES, NOISE, replacement=replacement))
    return curves


def test_a_draw_without_replacement_holds_no_sample_twice_and_one_with_does():
    settings = VarianceSettings(0, (5, 500), 4)
    with_replacement, without = places_of_draws(NUM_SAMPLES, settings).reshape(2, 4, 500)
    assert all(len(set(draw)) == 500 for draw in without.tolist())
    assert all(len(set(draw)) < 450 for draw in with_replacement.tolist()), "393 distinct ones are expected"
    assert len({tuple(draw) for draw in [*without.tolist(), *with_replacement.tolist()]}) == 8


def assert_covers(covered: np.ndarray, *, share: tuple[float, float] = (0.93, 0.97)) -> None:
    assert share[0] <= covered.mean() <= share[1], covered.mean()


@pytest.mark.parametrize("replacement", [True, False])
def test_points_are_unbiased_and_intervals_of_points_and_slope_cover_in_93_to_97_of_100_experiments(replacement):
    curves = experiments(replacement=replacement)
    for number, size in enumerate(SIZES):
        points = [curve.points[number] for curve in curves]
        truth = NOISE.mini_batch_variance(size, replacement=replacement)
        assert points[0].theory == truth
        found = np.array([point.variance for point in points])
        assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(EXPERIMENTS)
        assert_covers(np.array([point.interval[0] <= truth <= point.interval[1] for point in points]))
    slopes = [curve.slope for curve in curves]
    values = np.array([slope.value for slope in slopes])
    assert abs(values.mean() + 1) < 4 * values.std() / math.sqrt(EXPERIMENTS)
    assert values.std() < 0.03, "precise enough to tell -1 from its neighbours"
    assert_covers(np.array([slope.includes_law for slope in slopes]))


def test_without_replacement_the_uncorrected_slope_would_miss_the_law():
    """At B = 500 of 1000 half of the variance is left: the factor is what makes the slope -1."""
    rng = np.random.default_rng(3)
    draws = np.stack([rng.permutation(NUM_SAMPLES)[:500] for _ in range(REPLICATIONS)])
    sizes = [1, 10, 100, 500]
    table = measured(GRADIENTS - GRADIENTS.mean(axis=0), draws, sizes)
    assert variance_curve(table, sizes, NOISE, replacement=False).slope.includes_law
    uncorrected = variance_curve(table, sizes, NOISE, replacement=True).slope
    assert uncorrected.interval[1] < -1


def test_a_noise_floor_shows_as_a_slope_that_excludes_the_law():
    rng = np.random.default_rng(4)
    draws = rng.integers(0, NUM_SAMPLES, (REPLICATIONS, 125))
    table = measured(GRADIENTS - GRADIENTS.mean(axis=0), draws, SIZES) + 0.02 * NOISE.covariance_trace
    slope = variance_curve(table, SIZES, NOISE, replacement=True).slope
    assert not slope.includes_law
    assert slope.interval[0] > -1


def test_the_slope_of_the_standard_deviation_is_half_and_ratios_compare_with_theory():
    table = np.array([[8.0, 4.0], [8.0, 4.0]])
    noise = GradientNoise(100, 1.0, 10.0)
    curve = variance_curve(table, [1, 2], noise, replacement=True)
    assert curve.points[0] == VariancePoint(1, 8.0, (8.0, 8.0), 10.0)
    assert curve.points[0].ratio == 0.8
    assert curve.points[1].standard_deviation == 2.0
    assert curve.slope.value == pytest.approx(-1)
    half = curve.slope.of_standard_deviation
    assert (half.value, *half.interval) == pytest.approx((-0.5, -0.5, -0.5))


def test_the_batch_of_all_samples_has_neither_an_interval_nor_a_part_in_the_slope():
    table = np.array([[10.0, 4.0, 1e-30], [10.0, 4.0, 3e-30]])
    curve = variance_curve(table, [1, 2, 4], GradientNoise(4, 1.0, 10.0), replacement=False)
    last = curve.points[-1]
    assert (last.theory, last.interval, last.ratio) == (0.0, None, None)
    corrected = [10.0, 4.0 / (2 / 3)]
    assert curve.slope.value == pytest.approx(math.log(corrected[1] / corrected[0]) / math.log(2))


def test_a_variance_of_zero_gives_no_slope_and_one_replication_is_refused():
    noise = GradientNoise(100, 1.0, 10.0)
    curve = variance_curve(np.array([[1.0, 0.0], [1.0, 0.0]]), [1, 2], noise, replacement=True)
    assert (curve.slope, curve.points[1].interval) == (None, None)
    assert variance_curve(np.array([[1.0, 0.0], [1.0, 5.0]]), [1, 2], noise, replacement=True).slope is None
    for shape in ((1, 2), (3, 1), (4,)):
        with pytest.raises(ValueError, match=r"\[replications, 2 sizes\], and an interval needs 2 replications"):
            variance_curve(np.ones(shape), [1, 2], noise, replacement=True)


# --- moments of a set from a sample of it


def sampled(ids: np.ndarray, *, num_samples: int = NUM_SAMPLES) -> SampledMoments:
    gradients = GRADIENTS[ids]
    mean = gradients.mean(axis=0)
    deviations = gradients - mean
    return moments_of_sample(
        (deviations**2).sum(axis=1), deviations @ mean, float(mean @ mean), num_samples=num_samples
    )


def test_of_all_samples_the_moments_are_exact():
    found = sampled(np.arange(NUM_SAMPLES))
    assert found.is_exact
    assert found.trace == pytest.approx(NOISE.covariance_trace, rel=1e-12)
    assert found.grad_sq_norm == pytest.approx(NOISE.grad_sq_norm, rel=1e-12)
    assert found.noise_scale == pytest.approx(NOISE.simple_noise_scale, rel=1e-12)
    assert (found.trace_interval, found.grad_sq_norm_interval, found.interval) == (None, None, None)


@pytest.mark.parametrize("count", [150, 700])
def test_from_a_part_of_the_set_they_are_unbiased_and_their_intervals_cover(count):
    rng = np.random.default_rng(5)
    found = [sampled(rng.permutation(NUM_SAMPLES)[:count]) for _ in range(EXPERIMENTS)]
    for name, truth in (("trace", NOISE.covariance_trace), ("grad_sq_norm", NOISE.grad_sq_norm)):
        values = np.array([getattr(one, name) for one in found])
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(EXPERIMENTS)
        intervals = [getattr(one, f"{name}_interval") for one in found]
        assert_covers(np.array([low <= truth <= high for low, high in intervals]))
    assert_covers(np.array([one.interval[0] <= NOISE.simple_noise_scale <= one.interval[1] for one in found]))


def test_leaving_one_out_by_formula_is_leaving_it_out():
    """The jackknife of a ratio of the same moments, sample by sample."""
    ids = np.arange(40)
    found = sampled(ids)
    whole = np.array([found.trace, found.grad_sq_norm])
    left = np.array([[one.trace, one.grad_sq_norm] for one in (sampled(np.delete(ids, i)) for i in ids)])
    variance = np.var(40 * whole - 39 * left, axis=0, ddof=1) / 40 * (1 - 40 / NUM_SAMPLES)
    of_trace, of_norm = 1.959964 * np.sqrt(variance)
    factor = math.exp(of_trace / found.trace)
    assert found.trace_interval == pytest.approx((found.trace / factor, found.trace * factor))
    low, high = found.grad_sq_norm_interval
    assert (high - low) / 2 == pytest.approx(of_norm)


def test_where_the_mean_gradient_drowns_in_noise_there_is_no_noise_scale():
    deviations = np.random.default_rng(6).standard_normal((100, 5))
    deviations -= deviations.mean(axis=0)
    found = moments_of_sample((deviations**2).sum(axis=1), np.zeros(100), 1e-6, num_samples=10_000)
    assert (found.noise_scale, found.interval) == (None, None)
    assert found.grad_sq_norm < 0, "not clamped"
    assert found.trace_interval[0] < 5 < found.trace_interval[1]


@pytest.mark.parametrize(("count", "num_samples"), [(2, 10), (11, 10)])
def test_too_few_samples_or_more_than_the_set_are_refused(count, num_samples):
    with pytest.raises(ValueError, match=f"{count} samples of {num_samples}, {count} products"):
        moments_of_sample(np.ones(count), np.ones(count), 1.0, num_samples=num_samples)


# --- nested groups


@pytest.mark.parametrize("at_once", [1, 2])
def test_nested_groups_have_the_means_of_groups_made_one_by_one(at_once):
    vectors = torch.randn(48, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = [2, 6, 24]
    groups = NestedGroups(sizes)
    for part in vectors.split(at_once):
        groups.add(part.sum(dim=0), at_once)
    expected = [float(vectors.view(-1, size, 3).mean(dim=1).square().sum(dim=1).mean()) for size in sizes]
    assert groups.mean_sq_norms() == pytest.approx(expected, rel=1e-12)


def test_sizes_double_up_to_half_of_the_set():
    assert [doubling_sizes(count) for count in (1, 2, 3, 4, 512)] == [
        [], [1], [1], [1, 2], [2**power for power in range(9)],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([1, 10, 25], "a batch of 25 is not made of whole batches of 10."),
        ([4, 2], "a batch of 2 is not made of whole batches of 4."),
        ([2, 2], "a batch of 2 is not made of whole batches of 2."),
        (
            [1, 10, 200],
            r"\[1, 10, 200\]: 200 samples cannot be drawn without replacement from 100. Use sizes up",
        ),
        ([1, 100], "only 1 below the 100 samples. A slope needs 2 or more"),
        ([], "only 0 below"),
    ],
)
def test_sizes_that_do_not_nest_or_exceed_the_set_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        require_nested(sizes, num_samples=100)


def test_values_are_plain_numbers_ready_for_json():
    values = dataclasses.asdict(sampled(np.arange(50)))
    assert all(type(part) in (float, int, tuple) for part in values.values())
