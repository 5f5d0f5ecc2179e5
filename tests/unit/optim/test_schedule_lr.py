"""`ScheduleLR` against `Schedule` itself, whoever calls `step`, and however often."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.batch import BatchPlan, BatchRamp, JointRule, Schedule
from largebatch.gradient import GlobalBatches
from largebatch.optim import ScaledGroups, ScheduleLR, follow_batch, keep_lr_ratios, set_lr

BATCH = 10
SCHEDULE = Schedule(total_samples=100, warmup_samples=30, warmup_start_factor=0.1, decay="cosine", end_factor=0.01)


def groups() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.05}, {"params": [nn.Parameter(torch.ones(3))]}]


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def expected(steps: int, batch: int = BATCH) -> list[list[float]]:
    return [[base * SCHEDULE(step * batch) for base in (0.05, 0.2)] for step in range(steps)]


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_rates_are_those_of_the_schedule_however_often_step_is_called(calls: int, make: Any):
    optimizer = make(groups(), lr=0.2)
    scheduler, found = ScheduleLR(optimizer, SCHEDULE, global_batch_size=BATCH), []
    for _ in range(12):  # also past the end
        found.append(rates_of(optimizer))
        optimizer.step()
        for _ in range(calls):
            scheduler.step()
    assert found == expected(12)
    assert scheduler.get_last_lr() == rates_of(optimizer)
    assert scheduler.samples_seen == 120


def test_the_scheduler_that_accelerate_prepares_steps_once_per_rank_and_changes_nothing(no_launcher: None):
    from accelerate import Accelerator
    from accelerate.scheduler import AcceleratedScheduler
    from accelerate.state import AcceleratorState

    accelerator = Accelerator(cpu=True)
    try:
        for made_of in ("plain", "prepared"):
            optimizer = torch.optim.SGD(groups(), lr=0.2)
            prepared = accelerator.prepare(optimizer)
            scheduler = ScheduleLR(optimizer if made_of == "plain" else prepared, SCHEDULE, global_batch_size=BATCH)
            wrapped, found = accelerator.prepare(scheduler), []
            assert isinstance(wrapped, AcceleratedScheduler)
            AcceleratorState().num_processes = 4  # as many times it steps
            for _ in range(5):
                found.append(rates_of(optimizer))
                prepared.step()
                wrapped.step()
            AcceleratorState().num_processes = 1
            assert found == expected(5)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_a_state_goes_on_with_another_optimizer():
    """Saved as JSON: it holds plain numbers."""
    optimizer = torch.optim.SGD(groups(), lr=0.2)
    scheduler = ScheduleLR(optimizer, SCHEDULE, global_batch_size=BATCH)
    for _ in range(4):
        optimizer.step()
    state = json.loads(json.dumps(scheduler.state_dict()))
    other = torch.optim.SGD(groups(), lr=0.9)
    later, found = ScheduleLR(other, SCHEDULE, global_batch_size=BATCH), []
    later.load_state_dict(state)
    for _ in range(3):
        found.append(rates_of(other))
        other.step()
    assert found == expected(7)[4:]


def test_a_ramp_counts_by_its_stages():
    small, large = (BatchPlan.solve(global_batch_size=size, world_size=1) for size in (10, 30))
    optimizer = torch.optim.SGD(groups(), lr=0.2)
    ramp, found = BatchRamp((small, large), (20,)), []
    stays = follow_batch(optimizer, ramp, base_batch_size=10, rule="none")
    ScheduleLR(optimizer, SCHEDULE, global_batch_size=ramp, scaled=stays)
    for _ in range(4):
        found.append(rates_of(optimizer)[1])
        optimizer.step()
    assert found == [0.2 * SCHEDULE(samples) for samples in (0, 10, 20, 50)]


@pytest.mark.parametrize("given", ["batch", "stream"])
def test_a_batch_that_changes_needs_a_rule_for_what_follows_it(given: str):
    ramp = BatchRamp(tuple(BatchPlan.solve(global_batch_size=size, world_size=1) for size in (10, 30)), (20,))
    optimizer, stream = torch.optim.SGD(groups(), lr=0.2), GlobalBatches(torch.zeros(60, 1), 10, ramp={20: 30})
    with pytest.raises(
        ValueError, match=r"the batch changes \(10, 30 samples\), and nothing says .* scaled=follow_batch"
    ):
        ScheduleLR(optimizer, SCHEDULE, **({"global_batch_size": ramp} if given == "batch" else {"stream": stream}))


@pytest.mark.parametrize("stop", [0, 1, 2])  # the batch grows behind step 1
def test_what_follows_the_batch_follows_under_a_scheduler_as_in_a_loop_and_after_a_stop(stop: int):
    """AdamW, a group with a rate of its own: the values of the joint rule at each batch, the same in both."""
    ramp = BatchRamp(tuple(BatchPlan.solve(global_batch_size=size, world_size=1) for size in (10, 30)), (20,))

    def made() -> tuple[torch.optim.Optimizer, ScaledGroups]:
        optimizer = torch.optim.AdamW(groups(), lr=0.2, betas=(0.8, 0.9), weight_decay=0.1)
        return optimizer, follow_batch(optimizer, ramp, base_batch_size=20, rule="sde_timescale")

    def step(optimizer: torch.optim.Optimizer, found: list[Any]) -> None:
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones_like(group["params"][0])
        found.append([(g["lr"], g["betas"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups])
        optimizer.step()

    (one, scaled), by_hand = made(), []
    for seen in (0, 10, 20, 50):
        scaled.write(one, seen)
        set_lr(one, 0.2 * scaled.rate_factor_at(seen) * SCHEDULE(seen))
        step(one, by_hand)
    (other, scaled), found = made(), []
    scheduler = ScheduleLR(other, SCHEDULE, global_batch_size=ramp, scaled=scaled)
    for number in range(4):
        step(other, found)
        if number == stop:
            states = json.loads(json.dumps(scheduler.state_dict())), copy.deepcopy(other.state_dict())
            weights = [group["params"][0].detach().clone() for group in other.param_groups]
            (other, scaled) = made()
            scheduler = ScheduleLR(other, SCHEDULE, global_batch_size=ramp, scaled=scaled)
            for group, value in zip(other.param_groups, weights, strict=True):
                group["params"][0].data.copy_(value)
            other.load_state_dict(states[1])
            scheduler.load_state_dict(states[0])
    for rows, others in zip(by_hand, found, strict=True):
        for row, another in zip(rows, others, strict=True):
            assert row[1:] == another[1:]
            assert row[0] == pytest.approx(another[0], rel=1e-15)
    assert by_hand[-1][1][1] == pytest.approx((0.8**1.5, 0.9**1.5), rel=1e-12)
    assert by_hand[-1][1][0] == pytest.approx(0.2 * 1.5**0.5 * SCHEDULE(50), rel=1e-12)
    for a, b in zip(one.param_groups, other.param_groups, strict=True):
        assert torch.allclose(a["params"][0], b["params"][0], rtol=1e-6)
        assert one.state[a["params"][0]]["step"] == other.state[b["params"][0]]["step"]


def test_a_scheduler_refuses_a_clip_norm_that_is_to_follow():
    rule, optimizer = JointRule("linear", clip_norm="noise"), torch.optim.SGD(groups(), lr=0.2)
    scaled = follow_batch(optimizer, 40, base_batch_size=10, rule=rule, clip_norm=1.0)
    assert (scaled.clip_norm_at(0), scaled.rate_factor_at(0)) == (0.5, 4.0)
    with pytest.raises(ValueError, match="a scheduler does not clip"):
        ScheduleLR(optimizer, SCHEDULE, global_batch_size=40, scaled=scaled)


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    """A compiled step reads it there."""
    optimizer = torch.optim.AdamW(groups()[1:], lr=torch.tensor(0.2, dtype=torch.float64), foreach=False)
    rate = optimizer.param_groups[0]["lr"]
    ScheduleLR(optimizer, SCHEDULE, global_batch_size=BATCH)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == expected(2)[1][1]
    set_lr(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


@pytest.mark.parametrize("size", [np.int64(BATCH), BatchPlan.solve(global_batch_size=BATCH, world_size=2)], ids=str)
def test_a_batch_is_a_whole_number_of_any_library_or_a_plan(size: Any):
    optimizer = torch.optim.SGD(groups(), lr=0.2)
    scheduler = ScheduleLR(optimizer, SCHEDULE, global_batch_size=size)
    optimizer.step()
    assert scheduler.samples_seen == BATCH
    with pytest.raises(TypeError, match=r"global_batch_size=10.5: give a whole number"):
        ScheduleLR(optimizer, SCHEDULE, global_batch_size=10.5)


def test_set_lr_gives_the_same_rates():
    one, other = torch.optim.SGD(groups(), lr=0.2), torch.optim.SGD(groups(), lr=0.2)
    keep_lr_ratios(other)
    ScheduleLR(one, SCHEDULE, global_batch_size=BATCH)
    for step in range(3):
        set_lr(other, 0.2 * SCHEDULE(step * BATCH))
        assert rates_of(one) == pytest.approx(rates_of(other), rel=1e-15)
        one.step()


@pytest.mark.parametrize("given", [{}, {"stream": object(), "global_batch_size": 3}])
def test_the_position_comes_from_one_place(given: Any):
    with pytest.raises(ValueError, match=r"a stream, such as GlobalBatches, or global_batch_size.*; one of them"):
        ScheduleLR(torch.optim.SGD(groups(), lr=0.2), SCHEDULE, **given)


def test_ratios_under_a_scheduler_are_those_of_the_peak_rates():
    """The warmup begins at 0, where there is no ratio."""
    optimizer = torch.optim.SGD(groups(), lr=0.2)
    ScheduleLR(optimizer, Schedule(total_samples=100, warmup_samples=30), global_batch_size=BATCH)
    keep_lr_ratios(optimizer)
    set_lr(optimizer, 0.4)
    assert rates_of(optimizer) == pytest.approx([0.1, 0.4], rel=1e-15)
