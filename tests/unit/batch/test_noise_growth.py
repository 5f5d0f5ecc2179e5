"""When a batch grows, by planted measurements; a ramp decided step by step is the fixed ramp of the same steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.batch.noise_growth import GrowthDecision, GrowthRule, as_overrides
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp

pytestmark = pytest.mark.quick


def grown(rule: GrowthRule, lows: list[float | None], *, step: int = 1) -> list[tuple[int, int]]:
    """(samples seen, new batch) of every decision in a run that measures after every `step`-th step."""
    total, samples, since, in_a_row, found = rule.totals[0], 0, 0, 0, []
    for low in lows:
        samples += step * total
        in_a_row, new = rule.judge(in_a_row, low=low, total=total, samples_seen=samples, since=since)
        if new is not None:
            found.append((samples, new))
            total, since = new, samples
    return found


def rule(**options: object) -> GrowthRule:
    return GrowthRule(**{"totals": (10, 20, 40), "total_samples": 10_000, "confirmations": 3} | options)


@pytest.mark.parametrize(
    ("options", "lows", "expected"),
    [
        ({}, [25.0] * 2, []),
        ({}, [25.0] * 9, [(30, 20)]),  # 40 is above 25
        ({}, [20.0] * 3, [(30, 20)]),  # as large as the lower end is allowed
        ({}, [19.99] * 50, []),
        ({}, [25.0, 25.0, 19.0, 25.0, 25.0, None, 25.0, 25.0], []),  # one look, or no interval, begins anew
        ({}, [float("nan")] * 9, []),
        ({}, [25.0, 25.0, None, 25.0, 25.0, 25.0], [(60, 20)]),
        ({}, [1e9] * 9, [(30, 20), (90, 40)]),  # one candidate at a time, each confirmed anew; then there is no other
        ({"confirmations": 1}, [1e9, None, 1e9], [(10, 20), (50, 40)]),
        ({"factor": 2.0}, [10.0] * 3, [(30, 20)]),
        ({"factor": 0.5}, [39.9] * 9, []),
        ({"at_least": 50}, [1e9] * 9, [(50, 20), (110, 40)]),  # confirmed long before
        ({"total_samples": 50}, [1e9] * 9, [(30, 20)]),  # 30 + 20 fills the run
        ({"total_samples": 49}, [1e9] * 9, []),
    ],
)
def test_the_batch_grows_when_so_many_measurements_in_a_row_allow_it(options, lows, expected):
    assert grown(rule(**options), lows) == expected


@pytest.mark.parametrize(
    "options", [{"totals": (10,)}, {"totals": (20, 10)}, {"factor": 0.0}, {"confirmations": 0}, {"at_least": -1}]
)
def test_a_rule_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        rule(**options)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), max_size=6), st.data())
def test_a_ramp_decided_while_it_runs_is_the_fixed_ramp_of_its_decisions(places: list[int], data: st.DataObject):
    """Places may fall, as after a rollback. Earlier steps never change, and the fixed ramp has the same ones."""
    sizes = (3, 5, 8, 13)
    plans = tuple(BatchPlan.solve(global_batch_size=size, world_size=1) for size in sizes)
    ramp, position, walked = BatchRamp(plans, (), (0,)), 0, []
    for place in places:
        for _ in range(data.draw(st.integers(1, 4))):
            walked.append((position, ramp.at(position).global_batch_size))
            position += walked[-1][1]
        ramp = ramp.then(position, place)
        assert [(at, plan.global_batch_size) for at, plan in ramp.steps(0, len(walked))] == walked
        assert ramp.stage_at(position) == place
    fixed = BatchRamp(ramp.plans_in_order, ramp.milestones)
    total = position + data.draw(st.integers(0, 40))
    assert ramp.stages(total) == fixed.stages(total)
    assert ramp.num_steps(total) == fixed.num_steps(total)
    assert [ramp.samples_of_steps(number) for number in range(30)] == [fixed.samples_of_steps(n) for n in range(30)]


def test_decisions_survive_their_record():
    decision = GrowthDecision(640, 64, "noise_scale", 90.0, 70.0, 120.0, 25)
    assert GrowthDecision.of(decision.record()) == decision
    assert as_overrides([]) == ["batch.ramp.by=milestones", "batch.ramp.milestones=[]", "batch.ramp.totals=[]"]
