"""Batch-size ramps: which plan a step follows is a function of the samples before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.batch import BatchPlan
from largebatch.ramp import BatchRamp, decay_left_over, totals_in_place_of_decay


def ramp_of(sizes: list[int], milestones: list[int]) -> BatchRamp:
    plans = tuple(BatchPlan.solve(global_batch_size=size, world_size=1) for size in sizes)
    return BatchRamp(plans, tuple(milestones))


@st.composite
def ramps(draw: st.DrawFn) -> BatchRamp:
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    places = st.lists(st.integers(1, 200), min_size=len(sizes) - 1, max_size=len(sizes) - 1, unique=True)
    return ramp_of(sizes, sorted(draw(places)))


def walk(ramp: BatchRamp, total_samples: int) -> list[tuple[int, int]]:
    """(position, batch) of every step, one after the other, by the definition."""
    steps, position = [], 0
    while True:
        size = next(
            plan.global_batch_size
            for plan, start in reversed(list(zip(ramp.plans, (0, *ramp.milestones), strict=True)))
            if start <= position
        )
        if position + size > total_samples:
            return steps
        steps.append((position, size))
        position += size


@given(ramps(), st.integers(1, 400))
def test_steps_and_stages_are_those_of_a_walk_through_the_run(ramp: BatchRamp, total_samples: int):
    steps = walk(ramp, total_samples)
    assert ramp.num_steps(total_samples) == len(steps)
    assert [(at, plan.global_batch_size) for at, plan in ramp.steps(0, len(steps))] == steps
    assert ramp.samples_after(total_samples) == sum(size for _, size in steps)
    stages = ramp.stages(total_samples)
    unrolled = [
        (position + number * plan.global_batch_size, plan.global_batch_size)
        for position, plan, count in stages
        for number in range(count)
    ]
    assert unrolled == steps


@given(ramps(), st.integers(1, 400))
def test_a_run_resumed_at_any_step_goes_through_the_same_steps(ramp: BatchRamp, total_samples: int):
    steps = walk(ramp, total_samples)
    for done in range(len(steps)):
        rest = ramp.steps(steps[done][0], len(steps) - done)
        assert [(at, plan.global_batch_size) for at, plan in rest] == steps[done:]


def test_a_plan_alone_is_a_ramp_that_does_not_rise():
    plan = BatchPlan.solve(global_batch_size=7, world_size=1)
    ramp = BatchRamp.of(plan)
    assert BatchRamp.of(ramp) is ramp
    assert ramp.at(0) is ramp.at(10**12) is plan
    assert ramp.num_steps(10**12) == 10**12 // 7  # without walking


@pytest.mark.parametrize("milestones", [[5, 5], [9, 3], [0, 3]])
def test_milestones_rise_from_above_0(milestones: list[int]):
    with pytest.raises(ValueError, match="rise from one to the next"):
        ramp_of([1, 2, 3], milestones)


def test_every_plan_but_the_first_has_a_milestone():
    with pytest.raises(ValueError, match="2 plans and 0 milestones"):
        ramp_of([1, 2], [])


@given(st.integers(1, 500), st.floats(0.05, 0.95), st.integers(1, 6), st.integers(1, 5000))
def test_rate_over_batch_falls_by_gamma_at_every_milestone(total: int, gamma: float, count: int, max_total: int):
    """The noise scale of SGD, learning rate / batch, is that of the decay: exactly, whatever is rounded or capped."""
    largest = max(max_total, total)
    totals = totals_in_place_of_decay(total, num_milestones=count, gamma=gamma, max_total=largest)
    factors = decay_left_over(total, totals, gamma=gamma)
    assert max(totals) <= largest
    for number, (size, factor) in enumerate(zip(totals, factors, strict=True)):
        assert factor / size == pytest.approx(gamma ** (number + 1) / total, rel=1e-12)


def stationary_variance(lr: float, batch: int, curvature: float, noise: float = 1.0) -> float:
    """Of SGD on h x^2 / 2 with gradient noise of variance noise / batch: iterated until it stands still."""
    variance = 0.0
    for _ in range(5000):
        variance = (1 - lr * curvature) ** 2 * variance + lr**2 * noise / batch
    return variance


def test_a_larger_batch_has_the_stationary_variance_of_a_smaller_rate_to_first_order():
    """Closed form on the noisy quadratic: lr c / (B h (2 - lr h)); the ratio is (2 - lr h / a) / (2 - lr h)."""
    lr, curvature, total, gamma = 0.1, 0.5, 64, 0.25
    (grown,) = totals_in_place_of_decay(total, num_milestones=1, gamma=gamma, max_total=None)
    ratio = stationary_variance(lr, grown, curvature) / stationary_variance(gamma * lr, total, curvature)
    assert ratio == pytest.approx((2 - gamma * lr * curvature) / (2 - lr * curvature), rel=1e-9)
    assert ratio == pytest.approx(1, abs=0.03)
