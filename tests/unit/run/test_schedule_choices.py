"""Schedules from a config: further decays, their defaults, and functions of the user's own."""

from __future__ import annotations

import math
from typing import Any

import pytest

from largebatch.batch.decays import Cooldown, InverseSqrt, Restarts
from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.train_quietly import train_quietly
from tests.unit.composing import compose_run

HERE = "tests.unit.run.test_schedule_choices"
OWN = ("schedule=own", f"schedule.decay._target_={HERE}.power_law")
CALLS: list[int] = []


def power_law(samples_seen: int, total_samples: int, alpha: float = 1.0) -> float:
    return (1 - samples_seen / total_samples) ** alpha


def too_high(samples_seen: int) -> float:
    return 2.0


def moving(samples_seen: int) -> float:
    CALLS.append(samples_seen)
    return 1 / len(CALLS)


def breaking(samples_seen: int) -> float:
    return [1.0, 0.5][samples_seen]


class Table:
    def __init__(self, factors: list[float], total_samples: int) -> None:
        self.factors, self.total = factors, total_samples

    def __call__(self, samples_seen: int) -> float:
        return self.factors[min(samples_seen * len(self.factors) // self.total, len(self.factors) - 1)]


def numbers(*overrides: str, num_samples: int = 1000) -> RunNumbers:
    config = parse_config(compose_run("batch.total=10", "length=10ep", "scaling=none", *overrides))
    return derive(config, num_samples=num_samples, world_size=1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("schedule=wsd",), Cooldown(2000)),
        (
            ("schedule=wsd", "schedule.warmup=2ep", "schedule.cooldown=1ep", "schedule.cooldown_shape=sqrt"),
            Cooldown(1000, "sqrt"),
        ),
        (("schedule=restarts",), Restarts(3334)),
        (("schedule=restarts", "schedule.cycle_growth=2"), Restarts(1429, 2.0)),
        (("schedule=restarts", "schedule.cycle=50steps"), Restarts(500)),
        (("schedule=inverse_sqrt", "schedule.warmup=1ep", "schedule.warmup_from=zero"), InverseSqrt(1000)),
        (("schedule=inverse_sqrt",), InverseSqrt(1000)),
        (("schedule=inverse_sqrt", "schedule.timescale=20steps"), InverseSqrt(200)),
    ],
)
def test_lengths_of_a_decay_are_samples_with_defaults_that_fill_the_run(overrides: tuple[str, ...], expected: Any):
    assert numbers(*overrides).schedule.decay == expected


def test_an_own_decay_gets_all_samples_and_the_lengths_that_it_asks_for():
    schedule = numbers(*OWN, "+schedule.decay.alpha=2.0", "schedule.warmup=1ep", "schedule.warmup_from=zero").schedule
    assert schedule(500) == 0.5, "the warmup is ours"
    assert [schedule(samples) for samples in (1000, 5000, 10000)] == pytest.approx([0.81, 0.25, 0.0])
    assert schedule.decay_name == "power_law"
    table = numbers(
        "schedule=own", f"schedule.decay._target_={HERE}.Table", "+schedule.decay.factors=[1,0.5,0.25]"
    ).schedule
    assert [table(samples) for samples in (0, 3333, 3334, 9999, 10000)] == [1, 1, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("schedule=own", f"schedule.decay._target_={HERE}.too_high"), "too_high gives 2.0 after 0 samples"),
        (("schedule=own", f"schedule.decay._target_={HERE}.moving"), "moving is no function of the samples"),
        (("schedule=own", f"schedule.decay._target_={HERE}.breaking"), "breaking failed with IndexError"),
        ((*OWN, "+schedule.decay.beta=2"), "schedule.decay.beta=2"),
        ((*OWN, "+schedule.decay.samples_seen=2"), "largebatch sets this argument itself"),
        (("schedule=own", f"schedule.decay._target_={HERE}.nowhere"), "schedule.decay._target_"),
        (("schedule=cosine", "+schedule.cooldown=1ep"), "has no effect with schedule.decay=cosine, it belongs to wsd"),
        ((*OWN, "+schedule.end_factor=0.1"), "has no effect with schedule.decay=own"),
        (("schedule=wsd", "schedule.cooldown=20ep"), "A cooldown of 20000 samples, and 10000 come after the warmup"),
        (("schedule=restarts", "schedule.cycle=30ep"), "nothing would restart"),
        (("schedule=inverse_sqrt", "schedule.timescale=0ep"), "timescale=0 samples"),
        (("schedule.decay=wds",), "Did you mean 'wsd'?"),
        (("schedule=wsd", "schedule.cooldown=50steps", "batch.ramp.milestones=[2ep]", "batch.ramp.totals=[20]"),
         "schedule.cooldown=50steps: with a ramp a number of steps is not a number of samples"),
        (("schedule=constant", "batch.ramp.in_place_of_decay=true", "scaling=linear"), "=constant has none"),
        (("schedule=restarts", "batch.ramp.in_place_of_decay=true", "scaling=linear"), "The rate rises from"),
        (("schedule=step", "batch.ramp.in_place_of_decay=true", "scaling=linear", "batch.ramp.stage_factor=3"),
         "batch.ramp.stage_factor=3.0: has no effect with schedule=step"),
        (("batch.ramp.growth=seesaw",), "batch.ramp.growth=seesaw: has no effect without in_place_of_decay"),
        (("batch.ramp.in_place_of_decay=true", "scaling=linear", "batch.ramp.max_total=10"), "of 10 never grows"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_numbers(overrides: tuple[str, ...], expected: str):
    with pytest.raises(ConfigError) as raised:
        numbers(*overrides)
    assert expected in str(raised.value)


def test_the_rows_of_a_resumed_run_have_the_rates_of_the_function(tmp_path: Any):
    small = ("data=synthetic", "model=linear", "batch.total=32", "length=8steps", "schedule.warmup=0ep",
             "observers.metrics.every=1", "observers.evaluation.every=null", "scaling.rule=none", *OWN)  # fmt: skip
    calls = iter([False, False, True])
    train_quietly(compose_run(*small), tmp_path, stop=lambda: next(calls, False))
    rows = train_quietly(compose_run(*small, "resume=auto"), tmp_path).rows
    rates = [row["train/lr"] for row in rows if "train/lr" in row]
    assert rates == pytest.approx([compose_run(*small).scaling.base_lr * (1 - step / 8) for step in range(8)])
    assert not any(math.isnan(rate) for rate in rates)
