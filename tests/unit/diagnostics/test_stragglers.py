"""When a rank is slow, and when it is to be named: closed cases, without a clock."""

from __future__ import annotations

import random
import statistics

import pytest

from largebatch.diagnostics import IN_A_ROW, StragglerWatch, compare_ranks

EVEN = [8, 8, 8]


def named(series: list[list[float]], **options: float) -> list[list[int]]:
    """Who is named by each measurement, of ranks with equal work."""
    watch = StragglerWatch(**{"ratio": 1.5} | options)
    return [watch.add(compare_ranks(own_s, [8] * len(own_s))) for own_s in series]


def test_a_rank_is_held_against_the_median_of_the_others():
    times = compare_ranks([1.0, 3.0, 2.0], EVEN)
    assert times.usual_s == (2.5, 1.5, 2.0)
    assert times.ratios == (0.4, 2.0, 1.0)
    assert times.slowest_rank == 1


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8, 9])
def test_the_medians_of_others_are_those_of_the_definition(world_size):
    draw = random.Random(world_size)
    for _ in range(20):
        own_s = [draw.choice([1.0, 2.0, 3.5, draw.random() + 0.1]) for _ in range(world_size)]
        expected = tuple(statistics.median(own_s[:rank] + own_s[rank + 1 :]) for rank in range(world_size))
        assert compare_ranks(own_s, [4] * world_size).usual_s == pytest.approx(expected, rel=1e-15)


def test_a_slow_rank_does_not_move_what_it_is_held_against():
    """A median of all would be half its own on two ranks, and no ratio could reach 2."""
    assert compare_ranks([1.0, 100.0], [8, 8]).ratios == (0.01, 100.0)


def test_a_clock_of_0_accuses_nobody():
    assert compare_ranks([0.0, 0.0, 0.0], [8, 8, 8]).ratios == (1.0, 1.0, 1.0)
    assert compare_ranks([0.0, 0.0, 2.0], [8, 8, 8]).ratios == (0.0, 0.0, 1.0)
    watch = StragglerWatch(ratio=1.5)
    assert [watch.add(compare_ranks([0.0, 0.0, 2.0], [8, 8, 8])) for _ in range(4)] == [[]] * 4


@pytest.mark.parametrize(
    ("own_s", "num_samples", "ratios"),
    [
        ([2.0, 1.0], [16, 8], (1.0, 0.5)),  # twice the samples, twice the time
        ([3.0, 1.0], [16, 8], (1.5, 1 / 3)),
        ([1.0, 1.0], [16, 8], (0.5, 1.0)),  # all of it is overhead: nobody is slow
        ([1.0, 1.0], [30, 1], (1 / 30, 1.0)),
        ([1.0, 2.0], [16, 8], (0.25, 2.0)),  # fewer samples and slow
        ([2.0, 2.0, 1.0], [16, 16, 8], (2 / (1.5 * 16 / 12), 2 / (1.5 * 16 / 12), 0.5)),
    ],
)
def test_a_rank_with_more_samples_may_take_longer(own_s, num_samples, ratios):
    assert compare_ranks(own_s, num_samples).ratios == pytest.approx(ratios, rel=1e-12)


def test_a_rank_is_named_by_the_third_slow_measurement_in_a_row_and_once():
    assert IN_A_ROW == 3
    assert named([[1.0, 2.0]] * 7) == [[], [], [1], [], [], [], []]


def test_two_slow_measurements_and_a_good_one_are_nothing():
    assert named([[1.0, 2.0], [1.0, 2.0], [1.0, 1.0]] * 4) == [[]] * 12


def test_ranks_that_take_turns_are_not_named():
    assert named([[1.0, 2.0], [2.0, 1.0]] * 6) == [[]] * 12


def test_ranks_that_are_slow_alike_are_not_named():
    assert named([[9.0, 9.0, 9.0]] * 6) == [[]] * 6


def test_a_rank_exactly_at_the_ratio_is_not_slow():
    assert named([[1.0, 1.5]] * 4) == [[]] * 4
    assert named([[1.0, 1.5]] * 4, ratio=1.4) == [[], [], [1], []]


def test_differences_that_are_too_small_do_not_count():
    assert named([[0.001, 0.004]] * 4, least_s=0.005) == [[]] * 4
    assert named([[0.010, 0.016]] * 4, least_s=0.005) == [[], [], [1], []]


def test_several_slow_ranks_are_named_the_slowest_first():
    assert named([[1.0, 2.0, 1.0, 4.0, 1.0]] * 4) == [[], [], [3, 1], []]


def test_each_rank_has_its_own_count():
    """Rank 1 is slow from the first, rank 3 from the second on, and neither is always the slowest."""
    pairs = [(2.0, 1.0), (2.0, 3.0), (3.0, 2.0), (2.0, 3.0)]
    assert named([[1.0, one, 1.0, other, 1.0] for one, other in pairs]) == [[], [], [1], [3]]


def test_a_rank_that_has_recovered_is_named_again():
    slow, good = [1.0, 2.0], [1.0, 1.0]
    assert named([slow] * 3 + [good] * 2 + [slow] * 4) == [[], [], [1]] + [[]] * 6, "two good ones are a moment"
    assert named([slow] * 3 + [good] * 3 + [slow] * 3) == [[], [], [1]] + [[]] * 5 + [[1]]
    assert named([slow] * 3 + [good, slow] * 6) == [[], [], [1]] + [[]] * 12


def test_a_rank_that_comes_and_goes_is_named_more_and_more_rarely():
    slow, good = [1.0, 2.0], [1.0, 1.0]
    found = named(([slow] * 3 + [good] * 3) * 4)
    assert [number for number, ranks in enumerate(found, start=1) if ranks] == [3, 9], "then it takes 6 good ones"
    found = named(([slow] * 3 + [good] * 6) * 4)
    assert [number for number, ranks in enumerate(found, start=1) if ranks] == [3, 12, 21], "then 12"
