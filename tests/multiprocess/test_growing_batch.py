"""A batch that grows in place of a decay, in the real trainer: the closed form, any ranks, resumed, cooled down."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.batch.schedule import Schedule
from largebatch.data import linear_regression
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.records.checkpoint import position_of
from largebatch.records.trackers import read_metrics
from largebatch.run.train_quietly import train_quietly
from tests.unit.composing import compose_run

EACH, LENGTH, PEAK, TOTAL = 400, 1600, 0.3, 8
SETTING = ("data=noisy_quadratic", f"data.train.copies={EACH}", "data.train.noise_variance=[1.0,0.25]",
           "optimizer=sgd", "optimizer.momentum=0.0", "optimizer.weight_decay=0.0", "precision=fp64",
           "scaling=linear", f"scaling.base_lr={PEAK}", f"scaling.base_batch_size={TOTAL}", f"batch.total={TOTAL}",
           f"length={LENGTH}samples", "schedule=cosine", "schedule.warmup=0ep", "observers.evaluation.every=null",
           "observers.ledger.enabled=true", "batch.ramp.in_place_of_decay=true", "batch.ramp.max_total=50",
           "run.predict_from=none")  # fmt: skip


def trained(folder: str, *overrides: str) -> np.ndarray:
    """Theta after the run, [2 EACH]."""
    weights = folder + ".npy"
    np.save(weights, np.ones(1024))
    order = f"data.order={{_target_: largebatch.batch.WeightedOrder, weights: {weights}}}"  # with replacement
    model = train_quietly(compose_run(*SETTING, order, *overrides), folder).model
    return next(iter(model.parameters())).detach().numpy().copy()


def steps_of(folder: Path) -> tuple[list[float], list[int]]:
    """Rate and batch of every step, as the run's ledger has them."""
    rows = list(read_metrics(folder / "ledger.jsonl"))
    ends = [0, *(row["samples_seen"] for row in rows)]
    return [float.fromhex(row["lr"]) for row in rows], np.diff(ends).tolist()


@pytest.mark.parametrize(("growth", "totals"), [("full", {8, 16, 32, 50}), ("seesaw", {8, 11, 16, 23, 32, 45, 50})])
def test_the_trainer_follows_the_second_moments_of_its_schedule(tmp_path: Path, growth: str, totals: set[int]):
    """Mean squares of 400 coordinates each: a standard error of sqrt(2 / 400), and 4 of them.

    That tells the answer from a batch that stays, whose noise is up to 6 times as large at these rates.
    """
    theta = trained(str(tmp_path / "run"), f"batch.ramp.growth={growth}")
    lrs, sizes = steps_of(tmp_path / "run")
    assert set(sizes) == totals
    places, cosine = np.cumsum([0, *sizes[:-1]]), Schedule(LENGTH, decay="cosine")
    kept = [PEAK * cosine(int(at)) / TOTAL for at in places]
    assert lrs == pytest.approx([one * size for one, size in zip(kept, sizes, strict=True)], rel=1e-12)
    assert sum(sizes) > LENGTH - max(sizes)

    task, start = NoisyQuadratic([1.0, 0.25], [1.0, 0.25]), [1.0, 1.0]
    known = task.scheduled_moments(start, lrs=lrs, batch_sizes=sizes)[-1]
    assert (theta.reshape(2, EACH) ** 2).mean(axis=1) == pytest.approx(known, rel=4 * (2 / EACH) ** 0.5)
    stays = task.scheduled_moments(start, lrs=lrs, batch_sizes=[TOTAL] * len(lrs))[-1]
    assert stays[0] > 2 * known[0]


JOINT = ("data=linear_regression", "data.num_features=3", "data.train.num_samples=97", "+model.zero_init=true",
         "data.order=sequential", "precision=fp64", "optimizer=sgd", "optimizer.weight_decay=0.1", "batch.total=6",
         "scaling=linear_half_life", "scaling.base_lr=0.01", "scaling.base_batch_size=3",
         "scaling.weight_decay=timescale", "schedule=step", "schedule.gamma=0.3", "schedule.warmup=0ep",
         "length=420samples", "schedule.milestones=[100samples,200samples,350samples]", "batch.micro=2",
         "observers.evaluation.every=null", "observers.ledger.enabled=true", "batch.reduction=ordered",
         "run.predict_from=none", "batch.ramp.in_place_of_decay=true",
         "batch.ramp.growth=seesaw", "batch.ramp.max_total=40")  # fmt: skip


def joint(folder: str, *overrides: str, stop_after: int | None = None) -> np.ndarray:
    """Weights and bias at the end, [4]."""
    calls = itertools.count(1)
    run = train_quietly(compose_run(*JOINT, *overrides), folder, stop=lambda: next(calls) == stop_after)
    return np.concatenate([one.detach().numpy().ravel() for one in run.model.parameters()])


def by_hand(start: int, cooldown: int) -> np.ndarray:
    """The same in numpy: SGD by seesaw, momentum and weight decay by half-life, then a line down from `start`."""
    data = linear_regression(97, 3, "train")
    inputs, targets = np.c_[data.inputs.double().numpy(), np.ones(97)], data.targets.double().numpy()

    def momentum(size: int) -> float:
        return float(0.9 ** (size / 3))

    def rate(size: int) -> float:  # that the rule gives to a batch, before any decay: of the sum of what is added up
        return 0.01 * size / 3 * (1 - momentum(size)) / (1 - 0.9)

    slope = 1 - 0.9 + 0.01 * 0.1
    lost = (slope - (slope * slope - 4 * 0.01 * 0.1) ** 0.5) / 2  # by 3 samples: of s^2 - (1 - m + a) s + a = 0

    def decay(size: int) -> float:
        share, m = 1 - (1 - lost) ** (size / 3), momentum(size)
        return float(share * (1 - m - share) / (1 - share) / rate(size))

    weights, velocity, position, before = np.zeros(4), np.zeros(4), 0, 6
    while True:
        drops = sum(position >= at for at in (100, 200, 350) if at <= start)
        size = min(round(6 * 0.3 ** (-drops / 2)), 40)
        if position + size > start + cooldown:
            return weights
        batch = np.arange(position, position + size) % 97
        gradient = inputs[batch].T @ (inputs[batch] @ weights - targets[batch]) / size
        gradient[:3] += decay(size) * weights[:3]
        if size != before:  # past gradients move the weights as far as they would have
            velocity *= momentum(before) / momentum(size) * (1 - momentum(size)) / (1 - momentum(before))
            velocity *= rate(before) / rate(size)
        velocity = momentum(size) * velocity + gradient
        left = 1 - max(position - start, 0) / cooldown
        weights, position, before = weights - rate(size) * 0.3**drops * left * velocity, position + size, size


def test_a_growing_batch_is_the_same_on_three_ranks_and_after_a_stop_and_in_a_cooldown_that_of_numpy(
    ranks: Any, tmp_path: Path
):
    """Bit for bit with ordered sums; stopped inside the third stage, with momentum and weight decay that follow.

    The cooldown leaves it there on two ranks, and the fourth stage never comes. Float64: rounding of 50 steps.
    """
    alone, three = tmp_path / "alone", tmp_path / "three"
    end = joint(str(alone))
    ranks(3).run(joint, str(three), stop_after=28)
    step, start, _ = position_of(at := sorted((three / "checkpoints").iterdir())[-1])
    branch = (f"cooldown.checkpoint={at}", "cooldown.length=170samples")
    for cooled in ranks(2).run(joint, str(tmp_path / "branch"), *branch):
        assert cooled == pytest.approx(by_hand(start, 170), rel=1e-12)

    assert joint(str(three), "resume=auto").tobytes() == end.tobytes()
    lrs, sizes = steps_of(alone)
    assert (lrs, sizes) == steps_of(three)
    assert TOTAL < sizes[step] < max(sizes)
    assert start + 170 > 350 + sizes[step], "where the fourth stage would have begun"
