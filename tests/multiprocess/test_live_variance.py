"""The 1/B law that a run measures is that of its micro-batches, and the run does not feel it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import MicroBatchLoader, linear_regression
from largebatch.diagnostics.closed_forms import LeastSquares
from largebatch.distributed.runtime import Runtime
from largebatch.losses import SquaredError
from largebatch.models import Linear
from largebatch.records.trackers import Row
from largebatch.training.loop import Run, train
from largebatch.training.observers import Journal, VarianceObserver

NUM_SAMPLES, MICRO, SEED = 960, 3, 5


class Rows:
    """A tracker that keeps rows."""

    run_id = None

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def log(self, row: Row) -> None:
        self.rows.append(row)


def run_of(*, batch: int = 48, steps: int = 4, every: int | None = 2, lr: float = 0.1) -> dict[str, Any]:
    """Rows and weights of a training of linear regression in float64."""
    runtime = Runtime.open(precision="fp64")
    try:
        torch.manual_seed(0)
        data = linear_regression(NUM_SAMPLES, 10, "train", noise=0.5)
        model = Linear(10, 1)
        plan = BatchPlan.pinned(global_batch_size=batch, world_size=runtime.world_size, micro_batch_size=MICRO)
        tracker = Rows()
        journal = Journal([tracker], num_samples=NUM_SAMPLES)  # type: ignore[list-item]
        observers = [] if every is None else [VarianceObserver(journal, every=every, window=200)]
        wrapped = runtime.wrap(model)
        start = torch.cat([one.detach().flatten() for one in model.parameters()]).clone()
        run = Run(
            runtime,
            wrapped,
            SquaredError(),
            torch.optim.SGD(model.parameters(), lr=lr),
            plan,
            MicroBatchLoader(data, SampleOrder(NUM_SAMPLES, SEED), plan, runtime.rank),
            lambda _: lr,
            steps,
            seed=SEED,
            observers=observers,
        )
        train(run)
        hooks = [len(one._backward_hooks or ()) for one in model.parameters()]
        return {
            "rows": tracker.rows,
            "start": start.numpy(),
            "weights": [one.detach().numpy().copy() for one in model.parameters()],
            "hooks": hooks,
            "latest": observers[0].latest if observers else None,
        }
    finally:
        runtime.close()


def task() -> LeastSquares:
    data = linear_regression(NUM_SAMPLES, 10, "train", noise=0.5)
    return LeastSquares(data.inputs, data.targets)


def written_out(weights: np.ndarray, *, batch: int, world_size: int) -> dict[int, float]:
    """Variance at each size in the first step, from the gradient of every sample."""
    gradients = task().sample_gradients(weights)[SampleOrder(NUM_SAMPLES, SEED).ids(0, batch)]
    shares = gradients.reshape(world_size, batch // world_size, -1)
    sizes = [MICRO * 2**power for power in range((batch // world_size // MICRO).bit_length())]
    means = []
    for size in sizes:
        whole = batch // world_size // size * size
        groups = shares[:, :whole].reshape(world_size, -1, size, gradients.shape[1]).mean(axis=2)
        means.append(float((groups**2).sum(axis=2).mean()))
    share = (NUM_SAMPLES - 1) / NUM_SAMPLES
    return {
        size: share * (mean - means[-1]) / (1 - size / sizes[-1])
        for size, mean in zip(sizes[:-1], means[:-1], strict=True)
    }


@pytest.mark.parametrize("setting", [{}, {"batch": 42}], ids=str)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_measures_what_the_gradients_of_its_samples_say(ranks, world_size, setting):
    """At B = 42 a rank has 14 or 7 micro-batches, no power of 2; ways to reduce are test_every_diagnostic.py's."""
    found, *others = ranks(world_size).run(run_of, steps=1, every=1, **setting)
    (row,) = found["rows"]
    known = written_out(found["start"], batch=setting.get("batch", 48), world_size=world_size)
    measured = {int(key.removeprefix("variance/at_")): row[key] for key in row if key.startswith("variance/at_")}
    assert measured == pytest.approx(known, rel=1e-10)
    assert all(other["latest"] == found["latest"] for other in others)


@pytest.mark.parametrize("world_size", [1, 2])
def test_measuring_leaves_weights_bit_identical_and_no_hook_behind(ranks, world_size):
    with_observer = ranks(world_size).run(run_of, every=2)
    without = ranks(world_size).run(run_of, every=None)
    for one, other in zip(with_observer, without, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one["weights"], other["weights"], strict=True))
        assert not any(one["hooks"])
    assert [row["step"] for row in with_observer[0]["rows"]] == [2, 4]


def test_over_an_epoch_the_law_holds_and_variances_are_those_of_the_closed_form():
    """At a rate so small that the weights stay: an epoch has 10 steps; |G|^2 is not small beside them."""
    found = run_of(batch=96, steps=60, every=1, lr=1e-12)
    noise = task().gradient_noise(found["start"])
    trend = found["latest"]
    assert trend.slope.value == pytest.approx(-1, abs=0.1)  # coverage: tests/unit/test_diagnostics_variance.py
    assert trend.slope.interval[1] - trend.slope.interval[0] < 0.2
    assert noise.grad_sq_norm > noise.covariance_trace / 96
    for size, variance in trend.variances.items():
        assert variance == pytest.approx(noise.covariance_trace / size, rel=0.15)
    last = found["rows"][-1]
    assert (last["variance/slope"], last["variance/slope_low"]) == (trend.slope.value, trend.slope.interval[0])


def test_with_too_few_or_unequal_micro_batches_nothing_is_measured():
    assert run_of(batch=9, every=1)["rows"] == []
    assert run_of(batch=49, every=1)["rows"] == []
