"""Communication of a step against intervals counted by hand, latency and bandwidth against times that are known."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.diagnostics import communication_of_step, fit_transfer

SIZES = np.geomspace(1e3, 2.5e7, 10)


def test_reductions_at_the_same_time_count_once_and_what_reaches_beyond_the_last_gradient_is_exposed():
    # Parts from -10 to -4, -6 to -2 and -3 to 0: from -10 to 0 without a gap; the last gradient came at -3.
    found = communication_of_step([[-10.0, -6.0, -3.0]], [[-4.0, -2.0, 0.0]], [20.0])
    assert (found.total_s, found.exposed_s, found.hidden_share, found.share_of_step) == (10.0, 3.0, 0.7, 0.15)
    # A gap of 1 between the last two; the one before them ended inside the first.
    found = communication_of_step([[-10.0, -9.0, -3.0]], [[-4.0, -8.0, 0.0]], [20.0])
    assert (found.total_s, found.exposed_s) == (9.0, 3.0)


def test_an_early_part_that_is_reduced_last_is_exposed_too():
    found = communication_of_step([[-10.0, -6.0]], [[0.0, -5.0]], [20.0])
    assert (found.total_s, found.exposed_s) == (10.0, 6.0)


@pytest.mark.parametrize("late", [0.0, 1.0, 7.0])
def test_a_rank_that_comes_later_is_skew_and_not_communication(late: float):
    # Rank 1's gradients are ready at -5 and -2; rank 0 has them `late` before, and waits.
    ready = [[-5.0 - late, -2.0 - late], [-5.0, -2.0]]
    found = communication_of_step(ready, [[-4.0, 0.0], [-4.0, 0.0]], [20.0, 21.0])
    assert (found.total_s, found.exposed_s, found.straggler_wait_s) == (3.0, 2.0, late)
    assert found.slowest_rank == (1 if late else 0)
    assert found.step_s == 21.0


def test_ranks_that_are_late_in_turns_are_each_waited_for_once():
    # Part 0 begins when rank 0 has it (-4), part 1 when rank 1 has it (-1).
    found = communication_of_step([[-4.0, -3.0], [-9.0, -1.0]], [[-3.5, 0.0], [-3.5, 0.0]], [20.0, 20.0])
    assert (found.total_s, found.exposed_s, found.straggler_wait_s, found.slowest_rank) == (1.5, 1.0, 2.0, 1)


def test_known_latency_and_bandwidth_are_recovered_and_the_intervals_cover_them():
    random = np.random.default_rng(0)
    latency, bandwidth, noise, replications = 3e-4, 1.2e9, 0.05, 1000
    law = latency + SIZES / bandwidth
    fits = [fit_transfer(SIZES, law * (1 + noise * random.standard_normal(len(SIZES)))) for _ in range(replications)]
    # The mean over 1000 fits: its own error is about 0.1 %.
    assert np.mean([fit.latency_s for fit in fits]) == pytest.approx(latency, rel=0.005)
    assert np.mean([1 / fit.s_per_byte for fit in fits]) == pytest.approx(bandwidth, rel=0.01)
    inside = {"latency": 0, "bandwidth": 0}
    for fit in fits:
        inside["latency"] += fit.latency_interval[0] <= latency <= fit.latency_interval[1]
        assert fit.bandwidth_interval is not None
        inside["bandwidth"] += fit.bandwidth_interval[0] <= bandwidth <= fit.bandwidth_interval[1]
    for name, count in inside.items():  # 2 % are 3 standard errors of a share of 95 % in 1000
        assert 0.93 < count / replications < 0.97, name


def test_a_ring_of_known_links_is_found_through_its_all_reduces():
    num_ranks, message_s, link = 8, 2e-5, 5e9
    times = 2 * (num_ranks - 1) * (message_s + SIZES / num_ranks / link)  # messages of n / p bytes one after another
    fit = fit_transfer(SIZES, times)
    assert fit.ring(num_ranks) == pytest.approx((message_s, 1 / link))
    assert fit.seconds([1000, 10**7]) == pytest.approx(2 * fit.latency_s + (10**7 + 1000) / fit.bandwidth)


def test_there_is_no_bandwidth_where_larger_ones_did_not_surely_take_longer():
    fit = fit_transfer(SIZES[:5], [3e-4, 5e-4, 2e-4, 4e-4, 3e-4])
    assert (fit.bandwidth, fit.bandwidth_interval) == (None, None)
    assert fit.latency_interval[0] < fit.latency_s < fit.latency_interval[1]


@pytest.mark.parametrize(
    ("sizes", "times"), [([1.0, 2.0], [1.0, 2.0]), ([5.0] * 4, [1.0] * 4), ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0])]
)
def test_times_that_tell_no_line_are_refused(sizes: list[float], times: list[float]):
    with pytest.raises(ValueError, match="needs 3 times above 0, of 2 sizes or more"):
        fit_transfer(sizes, times)
