"""Batch-size ramps: which plan a step follows is a function of the samples before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp, decay_left_over, totals_in_place_of_decay

pytestmark = pytest.mark.quick


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
    with pytest.raises(ValueError, match="must be positive and increasing"):
        ramp_of([1, 2, 3], milestones)


def test_every_plan_but_the_first_has_a_milestone():
    with pytest.raises(ValueError, match="2 plans and 0 milestones"):
        ramp_of([1, 2], [])


@given(st.integers(1, 500), st.floats(0.05, 0.95), st.integers(1, 6), st.integers(1, 5000), st.sampled_from([0.5, 1.0]))
def test_what_the_scaling_rule_keeps_falls_by_gamma_at_every_milestone(
    total: int, gamma: float, count: int, max_total: int, exponent: float
):
    """lr / B^p, on which the noise depends, is that of the decay: exactly, whatever is rounded or capped."""
    largest = max(max_total, total)
    totals = totals_in_place_of_decay(total, num_milestones=count, gamma=gamma, max_total=largest, exponent=exponent)
    factors = decay_left_over(total, totals, gamma=gamma, exponent=exponent)
    assert max(totals) <= largest
    for number, (size, factor) in enumerate(zip(totals, factors, strict=True)):
        assert factor / size**exponent == pytest.approx(gamma ** (number + 1) / total**exponent, rel=1e-12)
        assert size == largest or size == pytest.approx(total * gamma ** (-(number + 1) / exponent), abs=0.5, rel=1e-12)


def test_a_decay_that_no_float_holds_ends_at_the_largest_batch():
    totals = totals_in_place_of_decay(8, num_milestones=400, gamma=0.1, max_total=100, exponent=0.5)
    assert totals[1:] == [100] * 399


def stationary_variance(
    lr: float, batch: int, curvature: float, *, noise: float = 1.0, adaptive: bool = False
) -> float:
    """Of h x^2 / 2 with gradient noise of variance noise / batch, by SGD: iterated until it stands still.

    `adaptive`: the gradient over its root mean square where noise dominates, sqrt(noise / batch), as in Adam.
    """
    step = lr / (noise / batch) ** 0.5 if adaptive else lr
    variance = 0.0
    for _ in range(5000):
        variance = (1 - step * curvature) ** 2 * variance + step**2 * noise / batch
    return variance


@pytest.mark.parametrize(("exponent", "grown"), [(1.0, 256), (0.5, 1024)])
def test_a_larger_batch_has_the_stationary_variance_of_a_smaller_rate_to_first_order(exponent: float, grown: int):
    """Closed form: e c / (B h (2 - e h)), e = lr for SGD and lr sqrt(B / c) for an adaptive method."""
    is_adaptive = exponent == 0.5
    curvature, total, gamma = 0.5, 64, 0.25
    lr = 0.1 / 64**0.5 if is_adaptive else 0.1
    assert totals_in_place_of_decay(total, num_milestones=1, gamma=gamma, max_total=None, exponent=exponent) == [grown]
    larger = stationary_variance(lr, grown, curvature, adaptive=is_adaptive)
    slower = stationary_variance(gamma * lr, total, curvature, adaptive=is_adaptive)
    large, small = (lr * grown**0.5, gamma * lr * total**0.5) if is_adaptive else (lr, gamma * lr)
    closed = large / grown * (2 - small * curvature) / ((2 - large * curvature) * small / total)
    assert larger / slower == pytest.approx(closed, rel=1e-9)
    assert larger / slower == pytest.approx(1, abs=0.12)  # to first order in rate x curvature, 0.2 at most
    other = stationary_variance(lr, 256 if is_adaptive else 1024, curvature, adaptive=is_adaptive)
    assert not 0.6 < other / slower < 1.6, "the other rule is off by a factor of 2 to 4"
