"""The branches of `measure critical-batch` go on at the batch and the rate that their run has at its place."""

from __future__ import annotations

import pytest

from largebatch.experiments.measure.critical_batch import _design
from largebatch.experiments.measure.weights import parse_measure
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

# fmt: off
RUN = ["data=digits", "data.limit=300", "model=mlp", "model.hidden=[4]", "logger=none", "scaling=linear_half_life",
       "scaling.base_batch_size=20", "batch.total=20", "length=1500samples", "schedule=step", "schedule.warmup=0ep",
       "schedule.milestones=[400samples,800samples,1200samples]", "schedule.gamma=0.5",
       "batch.ramp.in_place_of_decay=true", "batch.ramp.max_total=25"]
# fmt: on


def test_stages_of_equal_batches_have_rates_of_their_own():
    """The batch stays at 25 from 400 samples on, and the rate falls on."""
    config = compose_run(*RUN, "measure.critical_batch.factors=[1,2,3]", config_name="measure")
    options, prepared = parse_measure(config, keeps_format_for="critical-batch"), prepare(config, {})
    numbers = prepared.numbers
    assert [plan.global_batch_size for plan in numbers.ramp.plans] == [20, 25, 25, 25]
    for place in (0, 380, 400, 900, 1300):
        design = _design(prepared, options, start=place)
        assert design.batch_sizes[0] == numbers.ramp.at(place).global_batch_size
        assert design.lr_at(place) == pytest.approx(numbers.lr_at(place), rel=1e-12)
