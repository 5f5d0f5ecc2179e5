"""`batch.ramp.by=noise_scale` in a config: what it becomes, what the plan says, and what is refused before a run."""

from __future__ import annotations

import pytest

from largebatch.batch.noise_growth import GrowthDecision, GrowthRule
from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.growth_report import candidate_rows, decision_rows_of, growth_record
from tests.unit.composing import compose_run

pytestmark = pytest.mark.quick
DRIVEN = ("batch.total=32", "batch.micro=8", "length=10ep", "batch.ramp.by=noise_scale", "batch.ramp.totals=[64,200]",
          "observers.noise_scale.every=5", "scaling=sqrt", "scaling.base_lr=0.1",
          "scaling.base_batch_size=32")  # fmt: skip


def numbers(*overrides: str) -> RunNumbers:
    return derive(parse_config(compose_run(*DRIVEN, *overrides)), num_samples=1000, world_size=1)


def test_the_run_begins_with_the_first_batch_and_may_use_the_others():
    found = numbers("batch.ramp.factor=1.5", "batch.ramp.at_least=1ep")
    assert found.growth == GrowthRule((32, 64, 200), 10_000, factor=1.5, confirmations=3, at_least=1000)
    assert [plan.global_batch_size for plan in found.ramp.plans] == [32, 64, 200], "checks and memory know all of them"
    assert (found.num_steps, found.ramp.at(9999).global_batch_size) == (312, 32)
    assert [peak.value for peak in found.peak_lrs] == pytest.approx([0.1, 0.1 * 2**0.5, 0.1 * 6.25**0.5])


def test_the_plan_and_the_records_say_that_the_run_decides():
    ((name, value, why),) = candidate_rows(numbers("batch.ramp.factor=1.5", "batch.ramp.at_least=1ep"))
    assert (name, value) == ("batch grows to", "64 samples, 200 samples")
    assert "decided while it trains" in why
    assert "1.5 x the lower end" in why
    assert "1,000 samples apart" in why
    decision = GrowthDecision(640, 64, "noise_scale", 90.2, 71.0, 120.0, 25)
    record = growth_record(numbers(), [decision])["growth"]
    assert [one["global_batch_size"] for one in record["candidates"]] == [32, 64, 200]
    assert record["decisions"] == [decision.record()]
    rows = dict(decision_rows_of((32, 64, 200), [decision]))
    assert rows["batch grew"].startswith("batch 32 -> 64 after 640 samples")
    assert rows["the same again"] == (
        "'batch.ramp.by=milestones' 'batch.ramp.milestones=[640samples]' 'batch.ramp.totals=[64]'"
    )
    assert growth_record(numbers("batch.ramp.by=milestones", "batch.ramp.milestones=[1ep,2ep]"), []) == {}


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["batch.ramp.totals=[]"], "has no batch to grow to"),
        (["batch.ramp.totals=[200,64]"], "Sort them"),
        (["batch.ramp.totals=[64,64]"], "without repetition"),
        (["batch.ramp.totals=[32,64]"], "all above 32"),
        (["batch.ramp.totals=[64,1001]"], "Use at most 1000"),
        (["length=220samples", "schedule.warmup=0ep"], "never fits into a run of 220 samples"),
        (["batch.ramp.milestones=[1ep]"], "Leave milestones empty"),
        (["batch.ramp.in_place_of_decay=true", "schedule=step", "schedule.milestones=[2ep]"], "Choose one of them"),
        (["observers.noise_scale.every=null"], "Set observers.noise_scale.every=10"),
        (["batch.micro=null"], "Pin them with batch.micro=SIZE"),
        (["batch.ramp.max_total=64"], "has no effect without in_place_of_decay"),
        (["batch.ramp.at_least=10ep"], "the batch could never grow"),
        (["batch.ramp.at_least=20steps"], "Write it in ep or samples"),
        (["length=500steps"], "Write it in ep or samples"),
        (["batch.total=2", "batch.micro=2"], "needs 4 samples"),
        (["batch.ramp.factor=0"], "batch.ramp.factor"),
        (["batch.ramp.by=noise"], "batch.ramp.by"),
        (["batch.ramp.by=milestones", "batch.ramp.milestones=[1ep,2ep]", "batch.ramp.factor=2"], "has no effect with"),
    ],
)
def test_what_cannot_be_decided_or_measured_is_refused(overrides: list[str], error: str):
    with pytest.raises(ConfigError, match=error.replace("[", r"\[")):
        numbers(*overrides)
