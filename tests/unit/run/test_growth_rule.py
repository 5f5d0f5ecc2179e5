"""`batch.ramp.by=noise_scale` in a config: what it becomes, what the plan says, and what is refused before a run."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import cast

import pytest

from largebatch.batch.noise_growth import GrowthDecision, GrowthRule
from largebatch.cli.plan_advice import require_advisable
from largebatch.experiments.study.settings import StudyConfig
from largebatch.experiments.study.study_runs import plan_cells
from largebatch.run.config.reading import ConfigError, parse_config, parse_section
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.growth_report import candidate_rows, decision_rows_of, growth_record
from largebatch.run.prepare import Prepared
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
    ("overrides", "errors"),
    [
        (
            ["batch.ramp.totals=[]", "batch.ramp.milestones=[1ep]"],
            ["has no batch to grow to", "Leave milestones empty"],
        ),
        (["batch.ramp.totals=[200,64]", "batch.micro=null"], ["Sort them", "Pin them with batch.micro=SIZE"]),
        (["batch.ramp.totals=[64,64]"], ["without repetition"]),
        (["batch.ramp.totals=[32,1001]"], ["all above 32", "Use at most 1000"]),
        (
            ["length=220samples", "schedule.warmup=0ep", "batch.ramp.at_least=220samples"],
            ["never fits into a run of 220 samples", "the batch could never grow"],
        ),
        (
            [
                "batch.ramp.in_place_of_decay=true",
                "schedule=step",
                "schedule.milestones=[2ep]",
                "observers.noise_scale.every=null",
            ],
            ["Choose one of them", "Set observers.noise_scale.every=10"],
        ),
        (["batch.ramp.max_total=64"], ["has no effect without in_place_of_decay"]),
        (
            ["batch.ramp.at_least=20steps", "length=500steps"],
            ["at_least=20steps.*Write it in ep", "length=500steps.*Write it in ep"],
        ),
        (["batch.total=2", "batch.micro=2"], ["needs 4 samples"]),
        (["batch.ramp.factor=0", "batch.ramp.by=noise"], ["batch.ramp.factor", "batch.ramp.by"]),
        (
            ["batch.ramp.by=milestones", "batch.ramp.milestones=[1ep,2ep]", "batch.ramp.factor=2"],
            ["has no effect with"],
        ),
    ],
)
def test_what_cannot_be_decided_or_measured_is_refused(overrides: list[str], errors: list[str]):
    with pytest.raises(ConfigError) as refused:
        numbers(*overrides)
    for error in errors:
        assert re.search(error, str(refused.value)), error


def test_verbs_about_one_batch_size_refuse_a_run_that_decides_on_its_batches():
    config = compose_run(*DRIVEN, "study.target.value=0.1", config_name="study")
    with pytest.raises(ConfigError, match=r"sgd: batch\.ramp\.by=noise_scale: a study counts") as refused:
        plan_cells({"sgd": config}, parse_section(config, "study", StudyConfig))
    assert len(refused.value.errors) == 1, "not one for each batch size"
    with pytest.raises(ConfigError, match=r"advice is about one batch size\. Leave batch\.ramp out"):
        require_advisable(cast(Prepared, SimpleNamespace(numbers=numbers())), None, key="advise.batch_sizes")
