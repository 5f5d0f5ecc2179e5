"""The noise scale that a run measures is that of its micro-batches, whichever ranks computed them."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import noisy_quadratic
from largebatch.diagnostics import moments_of_step
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.signals import StopRequest
from largebatch.gradient.reductions import Compression
from largebatch.losses import OutputIsLoss
from largebatch.models import Quadratic
from largebatch.optim import parameters_by_name
from largebatch.run.build import open_run
from largebatch.run.prepare import prepare
from largebatch.training.loop import Observer, Run, train
from largebatch.training.observers import NoiseScaleObserver, RowLog
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import SEED, Case, lr_at, model_and_data
from tests.unit.composing import compose_run

STEPS, BATCH, MICRO = 6, 24, 5


class Norms(Observer):
    """What the run measured, step by step: of all parameters, and of groups of them."""

    def __init__(self) -> None:
        self.found: dict[int, list[tuple[float, float]]] = {}
        self.groups: tuple[str, ...] = ()

    def after_step(self, run: Run, report: Any) -> None:
        if report.norms is not None:
            self.groups = report.norms.groups
            self.found[report.step] = report.norms.result()


def measured(
    case: Case,
    every: int | None,
    *,
    micro: int = MICRO,
    lr: float = 1.0,
    groups: dict[str, list[str]] | None = None,
    compression: Compression = "none",
    steps: int = STEPS,
) -> dict[str, Any]:
    with Runtime.open(precision=case.precision) as runtime:
        model, loss, data, augment = model_and_data(case.kind)
        plan = BatchPlan.pinned(global_batch_size=case.batch, world_size=runtime.world_size, micro_batch_size=micro)
        norms, sizes = Norms(), []
        model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        run = made_run(
            runtime,
            model,
            loss,
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
            plan,
            data,
            lambda samples_seen: lr * lr_at(samples_seen),
            steps,
            seed=SEED,
            clip_norm=case.clip_norm,
            ordered=case.ordered,
            compression=compression,
            observers=[norms],
            norms_every=every,
            groups=parameters_by_name(model, groups or {}),
            augment=augment,
        )
        train(run)
        state = [*run.module.state_dict().values(), torch.get_rng_state()]
        return {"norms": norms.found, "state": [one.numpy() for one in state], "forwards": sizes}


def written_out(
    kind: str, *, cuts: Sequence[int] = range(0, BATCH, MICRO), step: int = 1, names: str = ""
) -> tuple[float, float]:
    """Of one step at the first weights, from the gradient of each micro-batch by itself in plain torch."""
    model, _, data, _ = model_and_data(kind)
    model = model.double()
    inputs, targets = data.fetch(SampleOrder(len(data), SEED).ids((step - 1) * BATCH, BATCH))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    units = int((targets != -100).sum())

    def gradient(rows: slice) -> torch.Tensor:
        outputs = model(inputs[rows]).flatten(0, -2)
        total = F.cross_entropy(outputs, targets[rows].flatten(), ignore_index=-100, reduction="sum")
        parts = torch.autograd.grad(total, [one for name, one in model.named_parameters() if names in name])
        return torch.cat([part.flatten() for part in parts])

    # A sample's gradient: the sum over its tokens over the mean tokens of a sample.
    micro = [slice(start, stop) for start, stop in itertools.pairwise([*cuts, BATCH])]
    sizes = [part.stop - part.start for part in micro]
    means = [gradient(part) / size * BATCH / units for part, size in zip(micro, sizes, strict=True)]
    whole = gradient(slice(0, BATCH)) / units
    weighted = sum(size * float(mean @ mean) for size, mean in zip(sizes, means, strict=True))
    return weighted, float(whole @ whole)


@pytest.mark.parametrize("kind", ["mlp", "masked"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_norms_are_those_of_each_micro_batch_by_itself(ranks, kind, world_size):
    """Micro-batches are unequal here; ways to reduce are test_every_diagnostic.py's."""
    case = Case(kind, BATCH, clip_norm=0.01)  # clipping comes after the measurement
    for result in ranks(world_size).run(measured, case, 1, steps=1):
        assert result["norms"][1] == [pytest.approx(written_out(kind), rel=1e-10)]


def test_moments_do_not_depend_on_the_number_of_ranks_with_batch_norm_and_dropout(ranks):
    one, three = (ranks(size).run(measured, Case("random", BATCH), 2)[0]["norms"] for size in (1, 3))
    assert sorted(one) == [2, 4, 6]
    for step, norms in one.items():
        assert three[step] == [pytest.approx(norms[0], rel=1e-10)]
    trace, _ = moments_of_step(*one[2][0], num_micro_batches=5, global_batch_size=BATCH)
    assert trace > 0


def test_measuring_changes_no_bit_of_the_weights(ranks):
    for world_size in (1, 2):
        case = Case("mlp", BATCH, precision="fp32")
        plain, measuring = (ranks(world_size).run(measured, case, every)[0] for every in (None, 1))
        for one, other in zip(plain["state"], measuring["state"], strict=True):
            assert np.array_equal(one, other)


# --- one micro-batch per step


@pytest.mark.parametrize("kind", ["mlp", "masked"])
def test_a_single_micro_batch_has_the_norms_of_two_parts_of_it(ranks, kind):
    """The third and fifth measurement pass an eighth of the batch, the others both halves."""
    # The data set has two batches, each of which comes in an order of its own in every epoch.
    found = ranks(1).run(measured, Case(kind, 24, ordered=kind == "mlp"), 1, micro=24, lr=0.0)[0]
    for step, cut in ((1, 12), (2, 12), (3, 3), (4, 12), (5, 3)):
        expected = written_out(kind, cuts=(0, cut), step=step)
        assert found["norms"][step] == [pytest.approx(expected, rel=1e-9)]
    assert found["forwards"] == [24, 12, 12, 24, 12, 12, 24, 3, 24, 12, 12, 24, 3, 24, 3]


def test_batch_norm_and_dropout_are_seen_and_take_both_halves_every_time(ranks):
    found = ranks(1).run(measured, Case("random", BATCH), 2, micro=BATCH)[0]
    assert found["forwards"] == [24, 24, 12, 12] * 3
    for norms in found["norms"].values():
        trace, _ = moments_of_step(*norms[0], num_micro_batches=2, global_batch_size=BATCH)
        assert trace > 0


@pytest.mark.parametrize("kind", ["mlp", "random"])
def test_splitting_a_micro_batch_changes_no_bit_of_weights_statistics_and_generators(ranks, kind):
    case = Case(kind, BATCH, precision="fp32")
    plain, measuring = (ranks(1).run(measured, case, every, micro=BATCH)[0] for every in (None, 1))
    assert len(measuring["norms"]) == STEPS
    for one, other in zip(plain["state"], measuring["state"], strict=True):
        assert np.array_equal(one, other)


# --- groups of parameters


@pytest.mark.parametrize(("world_size", "micro"), [(1, MICRO), (2, MICRO), (1, BATCH)])
def test_groups_that_cover_the_model_add_up_to_it(ranks, world_size, micro):
    options = {"micro": micro, "groups": {"weights": ["weight$"], "biases": ["bias"]}}
    found = ranks(world_size).run(measured, Case("mlp", BATCH), 1, **options)[0]["norms"]
    for whole, weights, biases in found.values():
        assert np.add(weights, biases) == pytest.approx(np.array(whole), rel=1e-12)
        assert min(*weights, *biases) > 0
    expected = written_out("mlp", cuts=range(0, BATCH, micro) if micro < BATCH else (0, BATCH // 2), names="bias")
    assert found[1][2] == pytest.approx(expected, rel=1e-10)


# --- compressed gradients


@pytest.mark.parametrize(("compression", "unit_roundoff"), [("bf16", 2**-9), ("fp16", 2**-12)])
def test_compression_touches_the_norm_of_the_reduced_gradient_alone_and_that_within_its_rounding(
    ranks, compression, unit_roundoff
):
    case = Case("mlp", BATCH, precision="fp32")
    exact, rounded = (
        ranks(2).run(measured, case, 1, lr=0.0, compression=each)[0]["norms"] for each in ("none", compression)
    )
    worst = 0.0
    for step, [(weighted, sq_norm)] in exact.items():
        [(weighted_too, sq_norm_too)] = rounded[step]
        assert weighted_too == weighted, "norms of micro-batches are taken before"
        # Both ranks' parts and their sum are rounded, and a part is at most sqrt(weighted / B) long.
        bound = 2 * 3 * unit_roundoff * math.sqrt(weighted / BATCH * sq_norm)
        assert abs(sq_norm_too - sq_norm) < bound
        worst = max(worst, abs(sq_norm_too - sq_norm) / bound)
    assert worst > 1e-3, "something was rounded"


# Each of four equal parts: traces are sums over 24 coordinates, so that few steps tell them.
CURVATURE, VARIANCE, POOL = [1.0, 2.0, 0.5, 3.0, 1.5, 1.0] * 4, [0.5, 2.0, 1.0, 0.3, 4.0, 1.0] * 4, 48
QUADRATIC_STEPS = 80


class Estimates:
    """What the observer of a run estimates, at fixed weights."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, float]] = []

    def log(self, row: Any) -> None:
        self.moments.append((row["noise_scale/trace"], row["noise_scale/grad_sq_norm"]))

    def finish(self, summary: Any, plots: Any) -> None: ...

    problems: ClassVar[list[str]] = []


def at_fixed_weights(seed: int, steps: int, micro: int = MICRO) -> tuple[list[tuple[float, float]], Any]:
    """Running means of both moments after each step on the noisy quadratic, and the estimate in the end."""
    with Runtime.open(precision="fp64") as runtime:
        data = noisy_quadratic(POOL, VARIANCE, "train", seed=3)
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=micro)
        model, estimates = Quadratic(CURVATURE, start=0.6), Estimates()
        observer = NoiseScaleObserver(RowLog([estimates], num_samples=POOL), every=1, window=steps)
        train(
            made_run(
                runtime,
                model,
                OutputIsLoss(),
                torch.optim.SGD(model.parameters(), lr=0.0),
                plan,
                data,
                lambda samples_seen: 0.0,
                steps,
                seed=seed,
                observers=[observer],
            )
        )
        return estimates.moments, observer.latest


def test_a_run_on_the_noisy_quadratic_measures_its_known_noise_scale_without_the_bias_of_a_finite_set(ranks):
    """Batches are half of the set: without its correction |G|^2 would be off by tr(Sigma) / 47, a sixth of itself."""
    truth = NoisyQuadratic(CURVATURE, VARIANCE).gradient_noise([0.6] * 24, num_samples=POOL)
    covered, means = 0, []
    for seed in range(8):
        # Norms of micro-batches are those of one process on any number of ranks, see above: one of the runs has two.
        run = (seed, QUADRATIC_STEPS)
        moments, latest = at_fixed_weights(*run) if seed else ranks(2).run(at_fixed_weights, *run)[0]
        means.append(moments[-1])
        assert latest.interval is not None
        covered += latest.interval[0] <= truth.simple_noise_scale <= latest.interval[1]
    error = (np.mean(means, axis=0) - [truth.covariance_trace, truth.grad_sq_norm]) / (
        np.std(means, axis=0, ddof=1) / np.sqrt(len(means))
    )
    assert np.abs(error).max() < 4  # standard errors
    assert np.std(means, axis=0)[1] / np.sqrt(len(means)) < truth.covariance_trace / (POOL - 1) / 6, "it would show"
    assert covered >= 5, "of 8 intervals that cover in 95 % of cases; 4 or fewer: 1 in 2500"


def test_a_run_of_single_micro_batches_measures_the_known_noise_scale():
    truth = NoisyQuadratic(CURVATURE, VARIANCE).gradient_noise([0.6] * 24, num_samples=POOL)
    runs = [at_fixed_weights(seed, 50, BATCH) for seed in range(6)]
    means = np.array([moments[-1] for moments, _ in runs])
    error = (means.mean(axis=0) - [truth.covariance_trace, truth.grad_sq_norm]) / (means.std(axis=0, ddof=1) / 6**0.5)
    assert np.abs(error).max() < 4  # standard errors
    assert means.std(axis=0)[0] / 6**0.5 < truth.covariance_trace / 20
    covered = [latest.interval[0] <= truth.simple_noise_scale <= latest.interval[1] for _, latest in runs]
    assert sum(covered) >= 4


def collectives(case: Case, every: int | None) -> Any:
    return count_collectives(measured, case, every)[0]


def test_a_measurement_costs_one_collective_of_two_numbers(ranks):
    case = Case("mlp", BATCH)
    without, with_it = (ranks(2).run(collectives, case, every)[0] for every in (None, 3))
    assert with_it - without == {("all_reduce", 2): 2}


def built(folder: str) -> tuple[str, list[str]]:
    """What a config with both settings makes: the compression of the run, and the groups that it measures."""
    options = ["data=synthetic", "model=linear", "logger=none", "observers.progress=false", f"run.dir={folder}"]
    options += ["observers.noise_scale.every=1", "observers.noise_scale.groups={head: [weight]}", "length=1steps"]
    options += ["precision.gradient_compression=bf16", "schedule.warmup=0ep", "observers.evaluation.every=null"]
    prepared = prepare(compose_run(*options), os.environ)
    with StopRequest() as stop, open_run(prepared, stop, options) as job:
        norms = Norms()
        job.run.observers = [*job.run.observers, norms]
        train(job.run)
        return job.run.gradient.reduction.compression, list(norms.groups)


def test_groups_and_compression_of_the_config_reach_the_run(ranks, tmp_path):
    assert ranks(2).run(built, str(tmp_path / "run")) == [("bf16", ["head"])] * 2
