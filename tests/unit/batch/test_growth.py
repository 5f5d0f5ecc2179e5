"""A batch that grows in place of any decay: its stages, what they keep, how many steps they save, where they fail."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import largebatch.run.derive as deriving
from largebatch.batch.decays import Cooldown
from largebatch.batch.growth import GROWTHS, Growth
from largebatch.batch.schedule import Schedule
from largebatch.diagnostics.closed_forms import LeastSquares, NoisyQuadratic
from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.derive import derive
from largebatch.run.trunk import Trunk
from tests.unit.composing import compose_run

QUADRATIC = NoisyQuadratic([1.0, 0.5, 0.25], [1.0, 1.0, 1.0])


def walk(schedule: Schedule, total: int, growth: Growth | None, largest: int) -> tuple[list[float], list[int]]:
    """Rates, in units of the peak, and batches of all steps of a run; written anew from the rule."""
    later = []
    if growth is not None:
        end = schedule.total_samples
        later = growth.stages(schedule, total, start=schedule.warmup_samples, end=end, largest=largest)
    rates, sizes, position = [], [], 0
    while True:
        size = [total, *(batch for place, batch in later if place <= position)][-1]
        if position + size > schedule.total_samples:
            return rates, sizes
        power = 0.0 if growth is None else growth.rate_exponent
        rates.append(schedule(position) * (size / total) ** power)
        sizes.append(size)
        position += size


@pytest.mark.parametrize(
    ("decay", "rule", "growth", "limit"),
    [
        ("quarter_cosine", 0.5, "seesaw", 2 / math.pi),  # Meterez et al. 2025: B grows as 1 / cos(pi p / 2)
        ("quarter_cosine", 1.0, "full", 2 / math.pi),
        ("cosine", 0.5, "seesaw", 1 / 2),  # the mean of (1 + cos(pi p)) / 2
        ("cosine", 1.0, "full", 1 / 2),
        ("cosine", 0.5, "full", 3 / 8),  # the mean of its square, cos^4(pi p / 2)
        ("quarter_cosine", 0.5, "full", 1 / 2),
        ("quarter_cosine", 1.0, "seesaw", 0.762760),  # Gamma(3/4) / (sqrt(pi) Gamma(5/4))
        ("cosine", 1.0, "seesaw", 2 / math.pi),  # the mean of cos(pi p / 2)
        ("linear", 0.5, "full", 1 / 3),
        ("linear", 1.0, "full", 1 / 2),
        ("linear", 1.0, "seesaw", 2 / 3),  # the mean of sqrt(1 - p)
    ],
)
def test_the_steps_fall_to_the_mean_of_the_decays_power_as_stages_get_small(
    decay: str, rule: float, growth: str, limit: float
):
    """Steps are the integral of 1 / B, and B = B0 f^-x in the limit: their share is the mean of f^x.

    A stage keeps the batch of its start, so finite stages save less: between the limit and r^x times it, r the factor
    of a stage. The largest batch, a tenth of a percent of the run, and rounding leave 0.5 % of room.
    """
    total, length = 1000, 10**9
    shares = []
    for factor in (2.0, 2**0.5, 1.02):
        chosen = Growth(rule, GROWTHS[growth], factor)
        stages = chosen.stages(Schedule(length, decay=decay), total, start=0, end=length, largest=length // 1000)
        places, sizes = [0, *(place for place, _ in stages), length], [total, *(size for _, size in stages)]
        steps = sum((end - at) / size for at, end, size in zip(places[:-1], places[1:], sizes, strict=True))
        shares.append(steps * total / length)
        assert 0.995 * limit < shares[-1] < 1.005 * limit * factor**chosen.exponent
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(limit, rel=0.045)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["cosine", "quarter_cosine", "linear", "polynomial", "wsd"]),
    st.integers(1, 60),
    st.floats(1.05, 8),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.5, 1.0]),
    st.integers(1, 2000),
    st.integers(0, 300),
)
def test_what_the_rule_keeps_is_that_of_the_decay_in_every_step(
    decay: str, total: int, factor: float, rule: float, share: float, largest: int, warmup: int
):
    """lr / B^p, whatever is rounded, capped or left to the rate; and the batch never grows before it may."""
    end = 1000
    chosen = Cooldown(300) if decay == "wsd" else decay
    schedule = Schedule(end, warmup_samples=warmup, warmup_start_factor=0.5, decay=chosen)
    growth, largest = Growth(rule, share, factor), max(largest, total)
    rates, sizes = walk(schedule, total, growth, largest)
    position = 0
    for rate, size in zip(rates, sizes, strict=True):
        assert rate / size**rule == pytest.approx(schedule(position) / total**rule, rel=1e-12)
        assert total <= size <= largest
        if size > total:
            assert position >= warmup
            assert size <= total * schedule(position) ** -growth.exponent + 0.5 + 1e-6 * size or size == largest
        assert rate <= (1 + 1e-9) * (size / (size - 0.5)) ** rule, "above the peak by no more than rounding"
        position += size
    assert sizes == sorted(sizes)
    assert position > end - max(sizes), "no sample but those that fill no batch is left"


def test_a_decay_in_drops_takes_several_stages_at_once_and_one_that_rises_is_refused():
    drops = Schedule(1000, decay="step", step_samples=(300, 600), step_gamma=0.125)
    growth = Growth(1.0, 1.0, 2.0)
    assert growth.stages(drops, 2, start=0, end=1000, largest=1000) == [(300, 16), (600, 128)]
    assert Growth(1.0, 0.5, 2.0).stages(drops, 2, start=0, end=1000, largest=1000) == [(300, 6), (600, 16)]
    assert growth.stages(drops, 2, start=0, end=1000, largest=20) == [(300, 16), (600, 20)]
    assert growth.stages(drops, 2, start=0, end=700, largest=1000) == [(300, 16)], "128 would not fit into the rest"
    with pytest.raises(ValueError, match=r"rises from 0.1 of its peak after 249 samples to 1 after 250"):
        growth.stages(lambda at: 0.1 if 240 < at < 250 else 1.0, 2, start=0, end=501, largest=100)


def test_stages_of_any_fineness_are_found_at_once_and_fall_from_where_the_decay_begins():
    """A factor of 1 + 2^-52 has 2 * 10^15 stages, with 5 batches; one of 1e200 is beyond floats where it is squared."""
    asked = []

    def line(at: int) -> float:
        asked.append(at)
        return 1 - at / 10000

    found = Growth(1.0, 1.0, math.nextafter(1, 2)).stages(line, 10, start=0, end=10000, largest=15)
    for at, size in found:  # the first sample at which 10 / f rounds to it
        assert line(at) * (size - 0.5) <= 10 * (1 + 1e-9) < line(at - 1) * (size - 0.5) * (1 + 2e-9)
    assert [size for _, size in found] == [11, 12, 13, 14, 15]
    assert len(asked) < 3000
    assert Growth(0.5, 1.0, 1e200).stages(lambda at: float(at < 500), 2, start=0, end=999, largest=99) == [(500, 99)]
    low = Growth(1.0, 1.0, 2.0).stages(lambda at: 0.3 * (1 - at / 800), 10, start=0, end=800, largest=35)
    assert low == [(400, 20), (600, 35)]
    with pytest.raises(ValueError, match="The rate is 0 from 5 samples on"):
        Growth(1.0).stages(lambda at: 0.0, 2, start=5, end=99, largest=10)


def end_loss(lrs: list[float], sizes: list[int], *, normalised: bool) -> float:
    used = [(lr, size) for lr, size in zip(lrs, sizes, strict=True) if lr > 0]
    rates, batches = zip(*used, strict=True)
    moments = QUADRATIC.scheduled_moments([1.0] * 3, lrs=rates, batch_sizes=batches, normalised=normalised)
    return 0.5 * float(moments[-1] @ QUADRATIC.curvature)


@pytest.mark.parametrize(("rule", "growth"), [(1.0, "full"), (1.0, "seesaw"), (0.5, "full"), (0.5, "seesaw")])
def test_a_growing_batch_ends_at_the_loss_of_the_decay_to_first_order_in_the_rate(rule: float, growth: str):
    """Exact second moments, of SGD under the linear rule and of its normalised form under the square root.

    The batch grows 8-fold at most. At half the rate, in twice the steps, the difference is halved: of higher order. In
    the normalised full growth two parts of it nearly cancel, so at least a quarter less is asked for. At a rate of
    0.05 it is below 2 %.
    """
    is_normalised = rule == 0.5
    differences = []
    for rate in (0.05, 0.025):
        schedule = Schedule(round(16 * 40 / rate), decay="cosine")
        peak = rate * math.sqrt(3 / 16) if is_normalised else rate
        losses = []
        for chosen in (None, Growth(rule, GROWTHS[growth])):
            rates, sizes = walk(schedule, 16, chosen, 128)
            losses.append(end_loss([peak * one for one in rates], sizes, normalised=is_normalised))
        differences.append(abs(losses[1] / losses[0] - 1))
    assert differences[0] < 0.02
    assert differences[1] < 0.75 * differences[0]


def test_a_normalised_method_stands_no_growth_beyond_seesaws():
    """Per stage the rate by 1 / a and the batch by b, always with a sqrt(b) = 2, which keeps lr / sqrt(B).

    The effective rate, lr sqrt(B) / sigma, is multiplied by sqrt(b) / a: 1/2 for the decay, 1 for Seesaw (sqrt(2), 2),
    2 for full growth (1, 4). So from 0.6 it is 9.6 in the fifth stage, beyond 2 / h, where no step converges.
    """
    ends = []
    for grows in (1.0, 2.0, 4.0):
        falls, lrs, sizes = 2 / math.sqrt(grows), [], []
        for number, share in enumerate((1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16)):
            size = round(16 * grows**number)
            count = int(16 * 5000 * share / size)
            lrs += [0.6 * math.sqrt(3 / 16) / falls**number] * count
            sizes += [size] * count
        ends.append(end_loss(lrs, sizes, normalised=True))
    decay, seesaw, full = ends
    assert seesaw == pytest.approx(decay, rel=0.12)  # first order: the rate is 0.6 where the decay's ends at 0.04
    assert full > 3 * decay


REGRESSION = LeastSquares(
    np.array([[1.0, 0.2], [-0.7, 1.1], [0.3, -1.3], [-0.4, -0.5], [0.9, 0.6]]), np.array([1.0, -0.4, 0.9, 0.2, -1.5])
)


def test_the_moments_of_linear_regression_are_the_mean_over_all_possible_runs():
    """Two steps of 2 and of 1 of 3 samples: every one of the 27 sequences of draws, one by one."""
    task = LeastSquares(np.array([[1.0], [-0.5], [2.0]]), np.array([0.3, -1.0, 1.1]))
    start, lrs, found = np.array([1.5, -0.5]), (0.3, 0.2), []
    for first, second, third in itertools.product(range(3), repeat=3):
        point = start - lrs[0] * task.sample_gradients(start)[[first, second]].mean(axis=0)
        point = point - lrs[1] * task.sample_gradients(point)[third]
        found.append(task.loss(point) - task.loss(task.minimiser))
    known = task.scheduled_excess(start, lrs=lrs, batch_sizes=(2, 1))
    assert known[-1] == pytest.approx(np.mean(found), rel=1e-12)
    assert known[0] == pytest.approx(task.loss(start) - task.loss(task.minimiser), rel=1e-12)


@pytest.mark.parametrize("growth", ["full", "seesaw"])
def test_on_linear_regression_growth_ends_at_the_loss_of_the_decay_to_first_order(growth: str):
    """Here the noise depends on the weights, too. At half the rate in twice the steps the difference is halved."""
    differences = []
    for rate in (0.04, 0.02):
        schedule, losses = Schedule(round(8 * 20 / rate), decay="cosine"), []
        for chosen in (None, Growth(1.0, GROWTHS[growth])):
            factors, sizes = walk(schedule, 8, chosen, 64)
            rates = [max(rate * one, 1e-300) for one in factors]
            losses.append(REGRESSION.scheduled_excess([1.0, 1.0, 1.0], lrs=rates, batch_sizes=sizes)[-1])
        differences.append(abs(losses[1] / losses[0] - 1))
    assert differences[0] < 0.02
    assert differences[1] < 0.65 * differences[0]


def test_a_step_decay_in_place_of_which_no_batch_grows_is_refused():
    given = ("schedule=step", "schedule.gamma=0.99", "batch.total=10", "batch.ramp.in_place_of_decay=true")
    with pytest.raises(ConfigError, match=r"10 never grows: at most 100 .* at 3 milestones of schedule.gamma=0.99"):
        derive(parse_config(compose_run(*given)), num_samples=1000, world_size=1)


@pytest.mark.parametrize(("decay", "given"), [("step", ("schedule.gamma=0.5",)), ("cosine", ())])
def test_the_growth_ends_with_the_decay_where_a_cooldown_begins(
    monkeypatch: pytest.MonkeyPatch, decay: str, given: tuple[str, ...]
):
    """The rate per scaled batch is the trunk's up to there, then goes down in a line; the batch stays."""
    base = (f"schedule={decay}", *given, "length=12ep", "schedule.warmup=0ep", "batch.total=10", "scaling=linear",
            "batch.ramp.in_place_of_decay=true", "batch.ramp.max_total=300")  # fmt: skip
    trunk = derive(parse_config(compose_run(*base)), num_samples=1000, world_size=1)
    assert len(trunk.ramp.plans) > 3
    place = next(at for at, _, _ in trunk.ramp.stages(12000)[2:])
    monkeypatch.setattr(deriving, "trunk_of", lambda config: Trunk(Path("trunk"), 1, place))
    cooled = parse_config(compose_run(*base, "cooldown.checkpoint=trunk", "cooldown.length=3ep"))
    branch = derive(cooled, num_samples=1000, world_size=1)
    assert branch.schedule.total_samples == place + 3000
    for at in (0, place - 1, place):
        assert branch.lr_at(at) == trunk.lr_at(at)
        assert branch.ramp.at(at) == trunk.ramp.at(at)
    assert branch.ramp.at(place + 2900) == branch.ramp.at(place)
    assert branch.lr_at(place + 750) == pytest.approx(0.75 * branch.lr_at(place), rel=1e-12)
