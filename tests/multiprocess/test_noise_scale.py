"""The noise scale that a run measures is that of its micro-batches, whichever ranks computed them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from largebatch.batch import BatchPlan
from largebatch.closed_forms import NoisyQuadratic
from largebatch.data import MicroBatchLoader, noisy_quadratic
from largebatch.diagnostics import moments_of_step
from largebatch.loop import Run, train
from largebatch.losses import OutputIsLoss, units_are_fixed
from largebatch.models import Quadratic
from largebatch.observers import Journal, NoiseScaleObserver
from largebatch.order import SampleOrder
from largebatch.runtime import Runtime
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.test_contract import SEED, Case, lr_at, model_and_data

STEPS, BATCH, MICRO = 6, 24, 5


class Norms:
    """What the run measured, step by step."""

    def __init__(self, every: int | None) -> None:
        self.every = every
        self.found: dict[int, list[float]] = {}

    def on_start(self, run: Run) -> None:
        run.norms_every = self.every

    def after_step(self, run: Run, report: Any) -> None:
        if report.norms is not None:
            self.found[report.step] = report.norms.result()

    def on_end(self, run: Run, status: str) -> None: ...


def measured(case: Case, every: int | None) -> dict[str, Any]:
    runtime = Runtime.open(precision=case.precision)
    try:
        model, loss, data, augment = model_and_data(case.kind)
        plan = BatchPlan.pinned(global_batch_size=case.batch, world_size=runtime.world_size, micro_batch_size=MICRO)
        norms = Norms(every)
        run = Run(
            runtime,
            runtime.wrap(model),
            loss,
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
            plan,
            MicroBatchLoader(data, SampleOrder(len(data), SEED), plan, runtime.rank, augment=augment),
            lr_at,
            STEPS,
            fixed_units=units_are_fixed(loss, data),
            seed=SEED,
            clip_norm=case.clip_norm,
            ordered=case.ordered,
            observers=[norms],
        )
        train(run)
        return {"norms": norms.found, "weights": [one.detach().numpy() for one in run.module.parameters()]}
    finally:
        runtime.close()


def written_out(kind: str) -> tuple[float, float]:
    """Of the first step, from the gradient of each micro-batch by itself in plain torch."""
    model, _, data, _ = model_and_data(kind)
    model = model.double()
    inputs, targets = data.fetch(SampleOrder(len(data), SEED).ids(0, BATCH))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    units = int((targets != -100).sum())

    def gradient(rows: slice) -> torch.Tensor:
        outputs = model(inputs[rows]).flatten(0, -2)
        total = F.cross_entropy(outputs, targets[rows].flatten(), ignore_index=-100, reduction="sum")
        parts = torch.autograd.grad(total, list(model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    # A sample's gradient: the sum over its tokens over the mean tokens of a sample.
    micro = [slice(start, min(start + MICRO, BATCH)) for start in range(0, BATCH, MICRO)]
    sizes = [part.stop - part.start for part in micro]
    means = [gradient(part) / size * BATCH / units for part, size in zip(micro, sizes, strict=True)]
    whole = gradient(slice(0, BATCH)) / units
    weighted = sum(size * float(mean @ mean) for size, mean in zip(sizes, means, strict=True))
    return weighted, float(whole @ whole)


@pytest.mark.parametrize("kind", ["mlp", "masked"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("ordered", [False, True])
def test_norms_are_those_of_each_micro_batch_by_itself(ranks, kind, world_size, ordered):
    case = Case(kind, BATCH, ordered=ordered, clip_norm=0.01)  # clipping comes after the measurement
    for result in ranks(world_size).run(measured, case, 1):
        assert result["norms"][1] == pytest.approx(written_out(kind), rel=1e-10)


def test_moments_do_not_depend_on_the_number_of_ranks_with_batch_norm_and_dropout(ranks):
    one, two, three = (ranks(size).run(measured, Case("random", BATCH), 2)[0]["norms"] for size in (1, 2, 3))
    assert sorted(one) == [2, 4, 6]
    for other in (two, three):
        for step, norms in one.items():
            assert other[step] == pytest.approx(norms, rel=1e-10)
    trace, _ = moments_of_step(*one[2], num_micro_batches=5, global_batch_size=BATCH)
    assert trace > 0


def test_measuring_changes_no_bit_of_the_weights(ranks):
    for world_size in (1, 2):
        case = Case("mlp", BATCH, precision="fp32")
        plain, measuring = (ranks(world_size).run(measured, case, every)[0] for every in (None, 1))
        for one, other in zip(plain["weights"], measuring["weights"], strict=True):
            assert np.array_equal(one, other)


CURVATURE, VARIANCE, POOL = [1.0, 2.0, 0.5, 3.0, 1.5, 1.0], [0.5, 2.0, 1.0, 0.3, 4.0, 1.0], 48
QUADRATIC_STEPS = 300


class Estimates:
    """What the observer of a run estimates, at fixed weights."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, float]] = []

    def log(self, row: Any) -> None:
        self.moments.append((row["noise_scale/trace"], row["noise_scale/grad_sq_norm"]))

    def finish(self, summary: Any, plots: Any) -> None: ...

    problems: ClassVar[list[str]] = []


def at_fixed_weights(seed: int, window: int) -> tuple[list[tuple[float, float]], Any]:
    """Running means of both moments after each step on the noisy quadratic, and the estimate in the end."""
    runtime = Runtime.open(precision="fp64")
    try:
        data = noisy_quadratic(POOL, VARIANCE, "train", seed=3)
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        model, estimates = Quadratic(CURVATURE, start=0.6), Estimates()
        observer = NoiseScaleObserver(Journal([estimates], num_samples=POOL), every=1, window=window)
        train(
            Run(
                runtime,
                runtime.wrap(model),
                OutputIsLoss(),
                torch.optim.SGD(model.parameters(), lr=0.0),
                plan,
                MicroBatchLoader(data, SampleOrder(POOL, seed), plan, runtime.rank),
                lambda samples_seen: 0.0,
                QUADRATIC_STEPS,
                seed=seed,
                observers=[observer],
            )
        )
        return estimates.moments, observer.latest
    finally:
        runtime.close()


def test_a_run_on_the_noisy_quadratic_measures_its_known_noise_scale_without_the_bias_of_a_finite_set(ranks):
    """Batches are half of the set: without its correction |G|^2 would be off by tr(Sigma) / 47, a sixth of itself."""
    truth = NoisyQuadratic(CURVATURE, VARIANCE).gradient_noise([0.6] * 6, num_samples=POOL)
    covered, means = 0, []
    for seed in range(12):
        moments, latest = ranks(2).run(at_fixed_weights, seed, QUADRATIC_STEPS)[0]
        means.append(moments[-1])
        assert latest.interval is not None
        covered += latest.interval[0] <= truth.simple_noise_scale <= latest.interval[1]
    error = (np.mean(means, axis=0) - [truth.covariance_trace, truth.grad_sq_norm]) / (
        np.std(means, axis=0, ddof=1) / np.sqrt(len(means))
    )
    assert np.abs(error).max() < 4  # standard errors
    assert np.std(means, axis=0)[1] / np.sqrt(len(means)) < truth.covariance_trace / (POOL - 1) / 8, "it would show"
    assert covered >= 9, "of 12 intervals that cover in 95 % of cases; 8 or fewer: 1 in 5000"


def collectives(case: Case, every: int | None) -> Any:
    return count_collectives(measured, case, every)[0]


def test_a_measurement_costs_one_collective_of_two_numbers(ranks):
    case = Case("mlp", BATCH)
    without, with_it = (ranks(2).run(collectives, case, every)[0] for every in (None, 3))
    assert with_it - without == {("all_reduce", 2): 2}
