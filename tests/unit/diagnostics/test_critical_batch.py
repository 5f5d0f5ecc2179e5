"""S_min, E_min and B_crit of synthetic curves whose truth is known, and what a fit must refuse to claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.diagnostics.critical_batch.critical_batch import CriticalBatch, fit_critical_batch
from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget

S_MIN, B_CRIT = 200.0, 100.0
SIZES = [8, 16, 32, 64, 128, 256, 512, 1024]
TRUTH = {"s_min": S_MIN, "e_min": S_MIN * B_CRIT, "b_crit": B_CRIT}


def curve(size: float) -> float:
    return S_MIN * (1 + B_CRIT / size)


def measured(
    rng: np.random.Generator,
    sizes: list[int],
    *,
    seeds: int = 1,
    noise: float = 0.0,
    shared: float = 0.0,
    samples: float = math.inf,
) -> list[StepsToTarget]:
    """Seeds scatter by `noise`, a batch size as a whole by `shared`; censored at a budget of samples."""
    points = []
    for size in sizes:
        steps = curve(size) * np.exp(noise * rng.normal(size=seeds) + shared * rng.normal())
        limit = samples / size
        hidden = [limit] * int((steps > limit).sum())
        points.append(StepsToTarget(size, tuple(steps[steps <= limit].tolist()), tuple(hidden)))
    return points


def shares_that_cover(fits: list[CriticalBatch]) -> dict[str, float]:
    def covers(fit: CriticalBatch, name: str) -> bool:
        estimate = getattr(fit, name)
        return estimate.low <= TRUTH[name] <= estimate.high

    return {name: float(np.mean([covers(fit, name) for fit in fits])) for name in TRUTH}


# 80 experiments know a share of 95 % to 2.4 %.
@pytest.mark.parametrize(
    ("sizes", "seeds", "noise", "shared"),
    [
        (SIZES[1:7], 1, 0.05, 0.0),
        (SIZES, 3, 0.1, 0.0),
        (SIZES, 5, 0.2, 0.0),
        (SIZES[1:7], 3, 0.05, 0.05),  # luck of the tuning, which the seeds of a batch size share
    ],
)
def test_intervals_of_95_percent_hold_the_truth_in_90_to_98_of_100(sizes, seeds, noise, shared):
    rng = np.random.default_rng(1)
    draws = [measured(rng, sizes, seeds=seeds, noise=noise, shared=shared) for _ in range(80)]
    fits = [fit_critical_batch(points) for points in draws]
    for name, share in shares_that_cover(fits).items():
        assert 0.90 <= share <= 0.98 + 0.01, (name, share)


def test_a_budget_that_cuts_off_the_largest_batches_biases_nothing():
    rng = np.random.default_rng(2)
    draws = [measured(rng, SIZES, seeds=3, noise=0.1, samples=512 * curve(512)) for _ in range(10)]
    assert all(points[-1].median[1] for points in draws), "1024 takes 1.8 times the budget"
    assert 2 < sum(points[-2].median[1] for points in draws) < 8, "512 takes all of it"
    fits = [fit_critical_batch(points) for points in draws]
    errors = np.log([fit.b_crit.value / B_CRIT for fit in fits])
    assert abs(errors.mean()) < 4 * errors.std(ddof=1) / math.sqrt(len(errors))
    assert all(share >= 0.7 for share in shares_that_cover(fits).values())


def test_a_censored_median_counts_as_a_bound_and_not_as_a_measurement():
    points = [StepsToTarget(size, (curve(size),)) for size in SIZES[2:]]
    bound = StepsToTarget(8, (), (curve(8) / 2,))
    with_bound = fit_critical_batch([bound, *points])
    assert with_bound.b_crit.value == pytest.approx(B_CRIT, rel=1e-3)
    as_measured = fit_critical_batch([StepsToTarget(8, (curve(8) / 2,)), *points])
    assert as_measured.b_crit.value < 0.8 * B_CRIT
    assert any("batch 8. It counts as a lower bound" in line for line in with_bound.warnings)


def test_a_bound_that_lies_above_the_other_points_lifts_the_curve():
    points = [StepsToTarget(size, (curve(size) * (1.05 if size in (16, 64) else 0.96),)) for size in SIZES[1:6]]
    free = fit_critical_batch(points)
    lifted = fit_critical_batch([StepsToTarget(8, (), (1.5 * curve(8),)), *points])
    assert lifted.e_min.value > 1.05 * free.e_min.value


@pytest.mark.parametrize(
    ("reached", "censored", "median"),
    [
        ((100.0,), (), (100.0, False)),
        ((100.0, 400.0), (), (200.0, False)),
        ((100.0, 90.0, 110.0), (), (100.0, False)),
        ((100.0, 90.0), (500.0,), (100.0, False)),
        ((100.0,), (500.0, 500.0), (500.0, True)),
        ((400.0, 90.0), (100.0,), (100.0, True)),
        ((200.0, 300.0), (100.0,), (200.0, True)),  # the one given up at 100 may belong behind both
    ],
)
def test_a_median_is_known_as_long_as_what_was_given_up_lies_behind_it(reached, censored, median):
    assert StepsToTarget(8, reached, censored).median == pytest.approx(median)


@pytest.mark.parametrize(
    ("seeds", "cut", "level"),
    [(3, 0, 0.75), (5, 0, 0.9375), (6, 0, 0.96875), (8, 0, 1 - 2 / 2**8), (9, 1, 1 - 20 / 2**9), (20, 5, 0.9586105)],
)
def test_the_interval_of_a_median_is_that_of_order_statistics(seeds: int, cut: int, level: float):
    """The table of any textbook on the sign test: of 20 values the 6th to the 15th hold the median in 95.9 %."""
    steps = [100.0 + number for number in range(seeds)]
    point = StepsToTarget(8, tuple(reversed(steps)))
    assert point.interval == (steps[cut], steps[-1 - cut])
    assert point.level == pytest.approx(level, abs=1e-7)


def test_that_interval_holds_the_median_of_a_skewed_distribution_as_often_as_it_says():
    rng = np.random.default_rng(8)
    draws = np.exp(rng.normal(size=(4000, 9)) ** 3)  # its median is 1, its mean is not finite in practice
    inside = []
    for row in draws.tolist():
        low, high = StepsToTarget(8, tuple(row)).interval
        inside.append(low <= 1 <= high)
    assert np.mean(inside) == pytest.approx(1 - 20 / 2**9, abs=4 * (0.04 * 0.96 / 4000) ** 0.5)


def test_two_seeds_a_censored_one_and_a_published_median_have_no_interval():
    assert StepsToTarget(8, (100.0, 110.0)).interval is None
    assert StepsToTarget(8, (100.0, 110.0, 120.0), (500.0,)).interval is None
    summary = StepsToTarget(8, (100.0,), summarised=20)
    assert (summary.interval, summary.median, summary.num_replicates) == (None, (100.0, False), 20)
    with pytest.raises(ValueError, match="A summary must be one value"):
        StepsToTarget(8, (100.0, 110.0), summarised=20)


def test_an_exact_curve_is_recovered_at_any_scale():
    for scale in (1e-3, 1.0, 1e4):
        points = [StepsToTarget(size, (scale * curve(size),)) for size in SIZES]
        fit = fit_critical_batch(points)
        assert fit.s_min.value == pytest.approx(scale * S_MIN, rel=1e-4)
        assert fit.e_min.value == pytest.approx(scale * S_MIN * B_CRIT, rel=1e-4)
        assert fit.b_crit.value == pytest.approx(B_CRIT, rel=1e-4)
        assert fit.supported
        steps = [one.value for one in fit.curve([8, 50])]
        assert steps == pytest.approx([scale * curve(8), scale * curve(50)], rel=1e-4)


def test_perfect_scaling_alone_bounds_b_crit_from_below_only():
    rng = np.random.default_rng(3)
    points = [StepsToTarget(size, (6400 / size * math.exp(0.03 * rng.normal()),)) for size in (1, 2, 4, 8, 16, 32)]
    fit = fit_critical_batch(points)
    assert not fit.supported
    assert (fit.b_crit.high, fit.s_min.low) == (math.inf, 0.0)
    assert fit.b_crit.low > 32
    assert fit.e_min.low < 6400 < fit.e_min.high
    assert any("scaling may be perfect up to batch 32" in line for line in fit.warnings)


def test_steeper_than_perfect_scaling_is_a_curve_at_its_limit_and_no_number():
    fit = fit_critical_batch([StepsToTarget(size, (6400 / size**1.1,)) for size in (1, 2, 4, 8, 16, 32)])
    assert (fit.b_crit.value, fit.b_crit.high, fit.s_min.value, fit.s_min.low) == (math.inf, math.inf, 0.0, 0.0)
    assert not fit.supported


def test_no_gain_at_all_bounds_b_crit_from_above_only():
    rng = np.random.default_rng(4)
    fit = fit_critical_batch([StepsToTarget(size, (200 * math.exp(0.03 * rng.normal()),)) for size in SIZES])
    assert not fit.supported
    assert (fit.b_crit.low, fit.e_min.low) == (0.0, 0.0)
    assert fit.b_crit.high < 8
    assert any("batches above 8 may save no steps" in line for line in fit.warnings)


def test_a_critical_batch_beyond_those_measured_is_called_extrapolated():
    fit = fit_critical_batch([StepsToTarget(size, (curve(size),)) for size in (4, 8, 16, 32, 64)])
    assert fit.b_crit.value == pytest.approx(B_CRIT, rel=1e-3)
    assert not fit.supported
    assert any("lies outside the batch sizes 4 to 64" in line for line in fit.warnings)


def test_two_batch_sizes_with_the_target_have_no_curve():
    points = [StepsToTarget(8, (100.0,)), StepsToTarget(16, (60.0,)), StepsToTarget(32, (), (50.0,))]
    fit = fit_critical_batch(points)
    assert (fit.s_min, fit.e_min, fit.b_crit, fit.supported) == (None, None, None, False)
    assert fit.warnings[0].startswith("the median reached the target at 2 of 3 batch sizes")
    assert fit.curve([8, 16]) == []


def test_a_test_that_tells_the_curve_from_the_points_is_a_remark_and_no_verdict():
    rng = np.random.default_rng(5)
    scattered = [
        StepsToTarget(size, tuple((curve(size) * factor * np.exp(0.01 * rng.normal(size=20))).tolist()))
        for size, factor in zip(SIZES, (1.05, 0.96, 1.03, 0.95, 1.06, 0.97, 1.0, 1.02), strict=True)
    ]
    fit = fit_critical_batch(scattered)
    assert fit.rejected
    assert any(line.startswith("the curve is not exact: its distance to the means is") for line in fit.warnings)
    assert fit.supported
    assert fit.verdict.startswith("supported: predicts each left-out batch size within")


def test_a_true_curve_is_rejected_in_about_one_of_a_hundred():
    rng = np.random.default_rng(6)
    fits = [fit_critical_batch(measured(rng, SIZES[1:6], seeds=3, noise=0.1)) for _ in range(100)]
    assert sum(fit.rejected for fit in fits) <= 5  # 1 expected; more than 5 in 1 of 2000


def test_what_is_no_measurement_is_refused():
    with pytest.raises(ValueError, match="above 0 and finite"):
        StepsToTarget(8, (0.0,))
    with pytest.raises(ValueError, match="at least one number of steps"):
        StepsToTarget(8, ())
    with pytest.raises(ValueError, match="one per batch size"):
        fit_critical_batch([StepsToTarget(8, (1.0,)), StepsToTarget(8, (2.0,))])
    with pytest.raises(ValueError, match="a curve needs points"):
        fit_critical_batch([])
