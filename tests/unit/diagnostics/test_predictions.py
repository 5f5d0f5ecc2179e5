"""Predictions of one more run: intervals hold as often as they say, and grades widen them where they do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions.chances import beta_quantile, f_chance, student_quantile
from largebatch.diagnostics.predictions.grades import Grade, calibrations, widened, widening
from largebatch.diagnostics.predictions.positive_law import fit_positive_law

PER_MICRO_S, PER_STEP_S, PER_SAMPLE_S, MICRO = 1e-3, 4e-3, 5e-5, 64
TRUTH = np.array([PER_MICRO_S, PER_STEP_S, PER_SAMPLE_S])
REPEATED = 250


def terms(size: int) -> list[float]:
    """As a rank computes a batch: micro-batches, steps, samples."""
    return [float(-(-size // MICRO)), 1.0, float(size)]


def even(size: int) -> float:
    return 0.05


def noisier_when_small(size: int) -> float:
    return 0.15 if size < 64 else 0.05


def coverage(
    sizes: Sequence[int], new: Sequence[int], *, runs: int, noise: Callable[[int], float] = even, seed: int = 0
) -> list[float]:
    """Share of new runs of each size inside of their interval, over runs whose law and noise are known."""
    draw = np.random.default_rng(seed)
    inside = np.zeros(len(new))
    for _ in range(REPEATED):
        tried = [sizes[number % len(sizes)] for number in range(runs)]
        seconds = [
            float(TRUTH @ terms(size)) * math.exp(noise(size) * draw.standard_normal()) for size in (*tried, *new)
        ]
        law = fit_positive_law([terms(size) for size in tried], seconds[:runs])
        predicted = [law.at(terms(size)) for size in new]
        inside += [one.low <= later <= one.high for one, later in zip(predicted, seconds[runs:], strict=True)]
    return (inside / REPEATED).tolist()


@pytest.mark.parametrize(
    ("sizes", "new", "runs", "noise"),
    [
        ((16, 64), (48,), 6, even),
        ((16, 64, 256), (96, 512), 8, even),
        ((8, 16, 32, 64, 128, 256), (16, 200), 30, noisier_when_small),
    ],
)
def test_95_percent_of_new_runs_are_inside(
    sizes: Sequence[int], new: Sequence[int], runs: int, noise: Callable[[int], float]
):
    # Of 250 draws a share of 0.95 has a standard error of 0.014.
    assert all(0.91 <= share <= 0.985 for share in coverage(sizes, new, runs=runs, noise=noise))


def test_repetitions_of_one_size_have_the_prediction_interval_of_normal_values_on_the_logarithm():
    values = [0.011, 0.009, 0.0105, 0.0099]
    found = fit_positive_law([terms(64)] * 4, values).at(terms(64))
    logs = np.log(values)
    half = 3.182446305284263 * logs.std(ddof=1) * math.sqrt(1 + 1 / 4)  # Student's t of 3, 97.5 %
    expected = [math.exp(logs.mean() + end) for end in (0, -half, half)]
    assert [found.value, found.low, found.high] == pytest.approx(expected, rel=1e-9)


def test_an_interval_of_the_mean_alone_would_not_hold():
    draw = np.random.default_rng(1)
    inside = 0
    for _ in range(REPEATED):
        values = np.exp(0.05 * draw.standard_normal(31))
        predicted = fit_positive_law([[1.0]] * 30, values[:30].tolist()).at([1.0])
        half = math.log(predicted.high / predicted.value) / math.sqrt(1 + 1 / 30) * math.sqrt(1 / 30)
        inside += abs(math.log(values[30] / predicted.value)) <= half
    assert inside / REPEATED < 0.4


def test_the_amounts_of_a_law_without_noise_are_found():
    sizes = [16, 64, 128, 192, 512, 640, 100]
    law = fit_positive_law([terms(size) for size in sizes], [float(TRUTH @ terms(size)) for size in sizes])
    assert law.amounts == pytest.approx(TRUTH, rel=1e-6)
    assert law.at(terms(1024)).value == pytest.approx(float(TRUTH @ terms(1024)), rel=1e-6)


def test_no_amount_is_negative_and_the_fit_is_then_the_best_of_those():
    sizes, seconds = [10.0, 20.0, 40.0], [0.1, 0.3, 0.55]  # a line through them starts below 0
    law = fit_positive_law([[1.0, size] for size in sizes], seconds)
    slope = math.exp(np.mean(np.log(np.array(seconds) / np.array(sizes))))  # least squares of the logarithm
    assert law.amounts.tolist() == pytest.approx([0.0, slope], rel=1e-9)


def test_what_runs_do_not_tell_apart_widens_the_interval_to_all_that_fits():
    # Batches that fit into one micro-batch: its cost may be the step's, or its own.
    law = fit_positive_law([[1, 1, 8], [1, 1, 16], [1, 1, 32], [1, 1, 8]], [0.018, 0.026, 0.042, 0.018])
    found = law.at([4, 1, 128])  # four micro-batches
    assert (found.value, found.low, found.high) == pytest.approx((0.138, 0.138, 0.168), rel=1e-4)


@pytest.mark.parametrize("values", [[], [0.0], [-1.0], [math.nan]])
def test_values_that_are_no_costs_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="above 0"):
        fit_positive_law([[1.0]] * len(values), values)


def test_quantiles_and_chances_are_those_of_scipy():
    from scipy.special import betaincinv, fdtr, stdtrit

    for freedom in (0.5, 1.0, 2.4, 7.0, 30.0, 400.0):
        assert student_quantile(freedom) == pytest.approx(stdtrit(freedom, 0.975), rel=1e-9)
    for ratio, above, below in ((0.01, 3.0, 4.5), (1.0, 2.0, 9.0), (8.0, 15.0, 3.0), (2.0, 200.0, 150.0)):
        assert f_chance(ratio, above, below) == pytest.approx(fdtr(above, below, ratio), rel=1e-9)
    for a, b in ((1, 30), (30, 1), (7, 12), (400, 20)):
        assert beta_quantile(a, b, 0.025) == pytest.approx(betaincinv(a, b, 0.025), rel=1e-9)


def graded(count: int, *, spread: float, claimed: float, seed: int = 0, factor: float = 1.0) -> list[Grade]:
    draw = np.random.default_rng(seed)
    low, high = math.exp(-1.96 * claimed * factor), math.exp(1.96 * claimed * factor)
    return [
        Grade("step_time", 1.0, low, high, math.exp(spread * float(draw.standard_normal())), factor)
        for _ in range(count)
    ]


def test_intervals_that_held_too_seldom_become_as_wide_as_needed_and_good_ones_stay():
    narrow = graded(150, spread=0.1, claimed=0.05)
    assert sum(one.is_inside for one in narrow) < 0.8 * 150
    factor = widening(narrow)
    assert factor == pytest.approx(2.0, rel=0.2)  # the spread is twice the claimed one; 150 draws of its 95 % point
    later = graded(2000, spread=0.1, claimed=0.05, seed=1, factor=factor)
    assert 0.93 <= sum(one.is_inside for one in later) / 2000 <= 0.98
    assert widening(graded(150, spread=0.03, claimed=0.05)) == 1.0


def test_a_widened_interval_is_judged_by_what_it_would_have_been():
    # Else a factor would be forgotten as soon as it works, and intervals would be too narrow every other time.
    assert widening(graded(150, spread=0.1, claimed=0.05, factor=2.0)) == pytest.approx(2.0, rel=0.2)


def test_few_grades_widen_to_the_worst_of_them():
    grades = graded(5, spread=0.3, claimed=0.05)
    assert widening(grades) == pytest.approx(max(one.score for one in grades))
    assert widened(Interval(1.0, 0.5, 2.0), 2.0) == Interval(1.0, 0.25, 4.0)


def test_the_table_counts_and_its_share_has_the_interval_of_clopper_and_pearson():
    grades = [Grade("memory", 2.0, 1.9, 2.1, measured) for measured in (2.0, 2.05, 2.2, 1.8)]
    (found,) = calibrations(grades)
    assert (found.number, found.inside) == (4, 2)
    assert found.median_width == pytest.approx(2.1 / 1.9)
    assert found.median_error == pytest.approx(0.0625)
    # 2 of 4: the roots of P(X >= 2) = 0.025 and P(X <= 2) = 0.025 of a binomial distribution.
    for share, tail in ((found.share.low, lambda p: 1 - (1 - p) ** 4 - 4 * p * (1 - p) ** 3),
                        (found.share.high, lambda p: 1 - p**4 - 4 * p**3 * (1 - p))):  # fmt: skip
        assert tail(share) == pytest.approx(0.025, rel=1e-6)
    assert found.is_doubtful, "2 of 4 refute 95 %"
    assert not calibrations(grades[:3])[0].is_doubtful, "2 of 3 do not"
