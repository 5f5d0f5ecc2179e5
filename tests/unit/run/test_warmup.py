"""A warmup that was asked for acts, and one that nobody asked for fits every run."""

from __future__ import annotations

import itertools

import pytest

from largebatch.batch.scaling import SCALING_RULES
from largebatch.run.config.reading import parse_config
from largebatch.run.derive import RunNumbers, derive
from tests.unit.composing import GROUPS, compose_run

pytestmark = pytest.mark.quick

SAMPLES = 8192


def derived(*overrides: str, totals: tuple[int, ...], lengths: tuple[str, ...] = ()) -> list[RunNumbers]:
    """Of one composed config with several batches and lengths: composing is what takes time."""
    config = parse_config(compose_run(*overrides))
    return [
        derive(
            config.model_copy(update={"batch": config.batch.model_copy(update={"total": total}), "length": length}),
            num_samples=SAMPLES,
            world_size=1,
        )
        for length in lengths or (config.length,)
        for total in totals
    ]


@pytest.mark.parametrize("optimizer", GROUPS["optimizer"])
def test_it_acts_with_every_optimizer_scaling_and_batch(optimizer: str):
    """LARS's base rate is that of batch 4096: below it, a warmup from the base rate did nothing."""
    for rule in SCALING_RULES:
        overrides = (f"optimizer={optimizer}", f"scaling={rule}", "length=20ep", "schedule=constant")
        totals = (8, 256, 4096, 8192)
        for run, total in zip(derived(*overrides, "schedule.warmup=5ep", totals=totals), totals, strict=True):
            rates = [run.lr_at(step * total) for step in range(run.num_steps)]
            warm = 5 * SAMPLES // total
            assert all(before < after for before, after in itertools.pairwise(rates[: warm + 1]))
            assert set(rates[warm:]) == {run.peak_lrs[0].value}
            assert rates[0] in (0, 0.05)  # zero, or the base rate of SGD


def test_it_starts_from_the_effect_of_the_base_rate_where_the_momentum_follows_the_batch():
    (run,) = derived("scaling=linear_half_life", "length=20ep", totals=(64,))
    momentum, first = run.scaled[0]["momentum"].value, run.lr_at(0)
    assert momentum == pytest.approx(0.81)
    assert first / (1 - momentum) == pytest.approx(0.05 / (1 - 0.9))
    assert run.peak_lrs[0].value == pytest.approx(2 * first)


@pytest.mark.parametrize("schedule", [one for one in GROUPS["schedule"] if one != "own"])
def test_every_length_works_with_all_defaults(schedule: str):
    """The first thing that everybody tries is `length=1ep`."""
    for optimizer in GROUPS["optimizer"]:
        for run in derived(
            f"optimizer={optimizer}", f"schedule={schedule}", totals=(8, 600, 8192), lengths=("3steps", "1ep", "30ep")
        ):
            warm = run.schedule.warmup_samples
            assert warm <= min(2 * SAMPLES, run.schedule.total_samples / 10)
            # No warmup that is but a step at rate 0: of three steps, or of one, none may be lost.
            assert run.lr_at(0) > 0 or warm >= 2 * run.plan.global_batch_size


def test_by_default_it_takes_two_epochs_and_at_most_a_tenth_of_the_run():
    runs = derived("optimizer=lars", totals=(64,), lengths=("10ep", "20ep", "90ep"))
    assert [run.schedule.warmup_samples for run in runs] == [SAMPLES, 2 * SAMPLES, 2 * SAMPLES]


def test_a_decay_in_steps_falls_after_shares_of_the_run_unless_told_where():
    (run,) = derived("schedule=step", "length=6ep", totals=(64,))
    assert run.schedule.step_samples == (2 * SAMPLES, 4 * SAMPLES, 5 * SAMPLES)
    (told,) = derived("schedule=step", "length=6ep", "schedule.milestones=[1ep]", totals=(64,))
    assert told.schedule.step_samples == (SAMPLES,)
    (grown,) = derived("schedule=step", "length=6ep", "batch.ramp.in_place_of_decay=true", totals=(4,))
    assert grown.ramp.milestones == run.schedule.step_samples
