"""A batch that grows in place of a cosine, in the real trainer: the closed form, the same on any ranks, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.batch.schedule import Schedule
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.records.trackers import read_metrics
from largebatch.run.train_quietly import train_quietly
from tests.unit.composing import compose_run

EACH, LENGTH, PEAK, TOTAL = 200, 1600, 0.3, 8
SETTING = ("data=noisy_quadratic", f"data.train.copies={EACH}", "data.train.noise_variance=[1.0,0.25]",
           "optimizer=sgd", "optimizer.momentum=0.0", "optimizer.weight_decay=0.0", "precision=fp64", "batch.micro=2",
           "scaling=linear", f"scaling.base_lr={PEAK}", f"scaling.base_batch_size={TOTAL}", f"batch.total={TOTAL}",
           f"length={LENGTH}samples", "schedule=cosine", "schedule.warmup=0ep", "observers.evaluation.every=null",
           "observers.ledger.enabled=true", "batch.ramp.in_place_of_decay=true", "batch.ramp.max_total=50")  # fmt: skip


def trained(folder: str, *overrides: str, stop_after: int | None = None) -> np.ndarray:
    """Theta after the run, [2 EACH]."""
    calls = [0]

    def stop() -> bool:
        calls[0] += 1
        return calls[0] == stop_after

    weights = folder + ".npy"
    if not Path(weights).exists():
        np.save(weights, np.ones(1024))
    order = f"data.order={{_target_: largebatch.batch.WeightedOrder, weights: {weights}}}"  # with replacement
    model = train_quietly(compose_run(*SETTING, order, *overrides), folder, stop=stop).model
    return next(iter(model.parameters())).detach().numpy().copy()


def steps_of(folder: Path) -> tuple[list[float], list[int]]:
    """Rate and batch of every step, as the run's ledger has them."""
    rows = list(read_metrics(folder / "ledger.jsonl"))
    ends = [0, *(row["samples_seen"] for row in rows)]
    return [float.fromhex(row["lr"]) for row in rows], np.diff(ends).tolist()


@pytest.mark.parametrize(("growth", "totals"), [("full", {8, 16, 32, 50}), ("seesaw", {8, 11, 16, 23, 32, 45, 50})])
def test_the_trainer_follows_the_second_moments_of_its_schedule(tmp_path: Path, growth: str, totals: set[int]):
    """Mean squares of 200 coordinates each, of three seeds: a standard error of sqrt(2 / 600), and 4 of them.

    That tells the answer from a batch that stays, whose noise is up to 6 times as large at these rates.
    """
    squares = []
    for seed in range(3):
        folder = tmp_path / f"seed_{seed}"
        theta = trained(str(folder), f"batch.ramp.growth={growth}", f"seed={seed}")
        squares.append((theta.reshape(2, EACH) ** 2).mean(axis=1))
    lrs, sizes = steps_of(folder)
    assert set(sizes) == totals
    places, cosine = np.cumsum([0, *sizes[:-1]]), Schedule(LENGTH, decay="cosine")
    kept = [PEAK * cosine(int(at)) / TOTAL for at in places]
    assert lrs == pytest.approx([one * size for one, size in zip(kept, sizes, strict=True)], rel=1e-12)
    assert sum(sizes) > LENGTH - max(sizes)

    task, start = NoisyQuadratic([1.0, 0.25], [1.0, 0.25]), [1.0, 1.0]
    known = task.scheduled_moments(start, lrs=lrs, batch_sizes=sizes)[-1]
    assert np.mean(squares, axis=0) == pytest.approx(known, rel=4 * (2 / (3 * EACH)) ** 0.5)
    stays = task.scheduled_moments(start, lrs=lrs, batch_sizes=[TOTAL] * len(lrs))[-1]
    assert stays[0] > 2 * known[0]


def test_a_growing_batch_is_the_same_on_three_ranks_and_after_a_stop(ranks: Any, tmp_path: Path):
    """Bit for bit with ordered sums; stopped inside the second stage."""
    ordered = (
        "batch.ramp.growth=seesaw",
        "batch.ramp.stage_factor=1.5",
        "batch.reduction=ordered",
        "length=480samples",
    )
    alone = trained(str(tmp_path / "alone"), *ordered)
    folder = str(tmp_path / "three")
    np.save(folder + ".npy", np.ones(1024))
    ranks(3).run(trained, folder, *ordered, stop_after=30)
    stopped = len(steps_of(tmp_path / "three")[0])
    for theta in ranks(2).run(trained, folder, *ordered, "resume=auto"):
        assert theta.tobytes() == alone.tobytes()
    lrs, sizes = steps_of(tmp_path / "alone")
    assert (lrs, sizes) == steps_of(tmp_path / "three")
    assert TOTAL < sizes[stopped] < max(sizes)
