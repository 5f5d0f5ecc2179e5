"""The noise scale in the optimizer's geometry: numbers of plain torch in one process, exact ones of a small set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.diagnostics import moments_of_step
from largebatch.distributed.runtime import Runtime
from largebatch.optim import LAMB, LARS, MuonWithAdamW, OptimizerGeometry, parameters_by_name
from largebatch.records.trackers import read_metrics
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from largebatch.training.loop import train
from largebatch.training.observers.noise_scale import NoiseScaleObserver
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import SEED, model_and_data
from tests.unit.composing import compose_run
from tests.unit.records.failing_disk import Death
from tests.watching import AfterStep

STEPS, BATCH, MICRO, LR, CLIP = 4, 24, 5, 0.01, 0.05
SHORT = (0.9, 0.1)  # a second moment that is old after two steps
OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, lr=LR, weight_decay=0.1, betas=SHORT),
    "lamb": partial(LAMB, lr=LR, betas=SHORT),
    "lars": partial(LARS, lr=LR),
    "muon": partial(MuonWithAdamW, lr=LR, adamw_patterns=["head|embed|^net.*2"], betas=SHORT),
}
Pairs = list[tuple[float, float]]


def problem(kind: str) -> tuple[nn.Module, Any, Any]:
    """A model with one frozen parameter."""
    model, loss, data, _ = model_and_data(kind)
    *_, last = model.parameters()
    last.requires_grad_(False)
    return model, loss, data


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    return OPTIMIZERS[name]((key, one) for key, one in model.named_parameters() if one.requires_grad)


def measured(kind: str, name: str, *, micro: int = MICRO, precision: str = "fp64", geometry: bool = True) -> Any:
    """Euclidean pairs, the optimizer's and the weights afterwards, of each step of a run on this world."""
    with Runtime.open(precision=precision) as runtime:
        model, loss, data = problem(kind)
        optimizer = optimizer_of(name, model.double() if precision == "fp64" else model)
        found: list[tuple[Pairs, Pairs]] = []
        watch = AfterStep(lambda run, report: found.append((report.norms.result(), report.norms.of_optimizer())))
        how = {"geometry": OptimizerGeometry(optimizer)} if geometry else {}
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=micro)
        train(
            made_run(
                runtime, model, loss, optimizer, plan, data, lambda _: LR, STEPS, seed=SEED, clip_norm=CLIP,
                observers=[watch], norms_every=1, groups=parameters_by_name(model, {"biases": ["bias"]}), **how,
            )
        )  # fmt: skip
        return found, [one.detach().numpy() for one in model.parameters()]


def written_out(kind: str, name: str, cuts: Sequence[Sequence[int]]) -> list[Pairs]:
    """In plain torch: the gradient of each micro-batch by itself, P from the optimizer's state, then its step."""
    model, _, data = problem(kind)
    model = model.double()
    optimizer, trained = optimizer_of(name, model), [one for one in model.parameters() if one.requires_grad]
    biases = [key.endswith("bias") for key, one in model.named_parameters() if one.requires_grad]
    steps: list[Pairs] = []
    for step in range(STEPS):
        ids = SampleOrder(len(data), SEED).ids(step * BATCH, BATCH)
        inputs, targets = data.fetch(ids)
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        units = int((targets != -100).sum())

        def gradient(rows: slice, inputs: Tensor = inputs, targets: Tensor = targets) -> tuple[Tensor, ...]:
            outputs = model(inputs[rows]).flatten(0, -2)
            total = F.cross_entropy(outputs, targets[rows].flatten(), ignore_index=-100, reduction="sum")
            return torch.autograd.grad(total, trained)

        whole = [one / units for one in gradient(slice(0, BATCH))]
        metrics = OptimizerGeometry(optimizer).metrics(trained)
        bounds = [*cuts[step], BATCH]
        table = np.zeros((len(trained), 2))
        for start, stop in itertools.pairwise(bounds):
            size = stop - start
            for place, one in enumerate(gradient(slice(start, stop))):
                table[place, 0] += size * _sq_norm(metrics, place, one / size * BATCH / units, whole[place])
        table[:, 1] = [_sq_norm(metrics, place, one, one) for place, one in enumerate(whole)]
        steps.append([tuple(table.sum(axis=0)), tuple(table[biases].sum(axis=0))] if metrics else [])
        for one, part in zip(trained, whole, strict=True):
            one.grad = part.clone()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
    return steps


def _sq_norm(metrics: Any, place: int, gradient: Tensor, whole: Tensor) -> float:
    if metrics is None:
        return 0.0
    own = metrics[place]
    return float(own.sq_norm(gradient) * (1.0 if own.factor is None else own.factor(whole)))


@pytest.mark.parametrize(("kind", "name"), [("mlp", "lars"), ("mlp", "muon"), ("masked", "adamw"), ("masked", "lamb")])
def test_every_world_measures_what_plain_torch_does_with_clipping_frozen_weights_and_groups(ranks, kind, name):
    expected = written_out(kind, name, [range(0, BATCH, MICRO)] * STEPS)
    begins = [name == "lars"] * 2  # the others have no state yet, then a young one
    assert [bool(one) for one in expected] == [*begins, True, True]
    for world_size in (1, 2, 3):
        for found, _ in ranks(world_size).run(measured, kind, name):
            for (_, pairs), truth in zip(found, expected, strict=True):
                assert pairs == [pytest.approx(one, rel=1e-9) for one in truth]


def test_a_single_micro_batch_is_split_in_this_geometry_too(ranks):
    expected = written_out("mlp", "adamw", [(0, 12), (0, 12), (0, 3), (0, 12)])
    [(found, _)] = ranks(1).run(measured, "mlp", "adamw", micro=BATCH)
    assert [pairs for _, pairs in found] == [[pytest.approx(one, rel=1e-9) for one in step] for step in expected]


def test_the_geometry_changes_no_bit_of_the_weights_and_of_the_euclidean_numbers(ranks):
    (with_it, weights), (without, same) = (
        ranks(2).run(measured, "mlp", "muon", precision="fp32", geometry=one)[0] for one in (True, False)
    )
    assert [pairs for pairs, _ in with_it] == [pairs for pairs, _ in without]
    assert all(pairs == [] for _, pairs in without)
    assert all(np.array_equal(one, other) for one, other in zip(weights, same, strict=True))


def test_the_mean_over_all_batches_of_a_small_set_is_the_exact_trace_and_signal():
    """Per-sample gradients of 6 samples; all 90 batches of 4 of them, in two micro-batches of 2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])

    def loss(parameters: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, parameters, (one[None],)), target[None])

    parameters = {name: one.detach() for name, one in net.named_parameters()}
    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    optimizer = MuonWithAdamW([{"params": [net[0].weight], "muon": True},
                               {"params": [net[0].bias, *net[2].parameters()], "muon": False}])  # fmt: skip
    F.cross_entropy(net(inputs), targets).backward()
    for _ in range(10):
        optimizer.step()
    metrics = OptimizerGeometry(optimizer).metrics(list(net.parameters())) or []

    def sq_norm(ids: Sequence[int]) -> float:
        means = [one[list(ids)].mean(dim=0) for one in by_sample.values()]
        return sum(float(metric.sq_norm(one)) for metric, one in zip(metrics, means, strict=True))

    signal = sq_norm(range(6))
    trace = sum(sq_norm([one]) for one in range(6)) / 6 - signal  # tr(P Sigma) of the six
    found = [
        moments_of_step(
            2 * sq_norm(first) + 2 * sq_norm(second), sq_norm([*first, *second]),
            num_micro_batches=2, global_batch_size=4, num_samples=6,
        )
        for first in itertools.combinations(range(6), 2)
        for second in itertools.combinations(sorted(set(range(6)) - set(first)), 2)
    ]  # fmt: skip
    assert len(found) == 90
    assert np.mean(found, axis=0) == pytest.approx([trace, signal], rel=1e-11)
    assert trace > 0.1 * signal > 0


SMALL = (
    "model=mlp", "model.hidden=[8]", "data=synthetic", "optimizer=adamw", "optimizer.betas=[0.9,0.1]",
    "batch.total=32", "batch.max_micro=8", "length=8steps",
    "schedule.warmup=1steps", "observers.evaluation.every=null", "observers.checkpoint.every=4steps",
    "observers.noise_scale.every=1", "observers.noise_scale.groups={biases: [bias]}",
)  # fmt: skip


def noise_rows(folder: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in row.items() if key.startswith("noise_scale/")}
        for row in read_metrics(folder / "metrics.jsonl")
        if "noise_scale/trace" in row
    ]


def test_a_resumed_run_measures_on_from_what_it_had_and_euclidean_rows_are_those_of_a_run_without(tmp_path):
    geometry = "observers.noise_scale.geometry=optimizer"
    for name, more in (("whole", (geometry,)), ("euclidean", ())):
        train_quietly(compose_run(*SMALL, *more), tmp_path / name)

    def die(run: Any, report: Any) -> None:
        raise Death

    with pytest.raises(Death):
        train_quietly(compose_run(*SMALL, geometry), tmp_path / "broken", observers=[AfterStep(die, only=6)])
    train_quietly(compose_run(*SMALL, geometry, "resume=auto"), tmp_path / "broken")
    whole, euclidean = noise_rows(tmp_path / "whole"), noise_rows(tmp_path / "euclidean")
    assert noise_rows(tmp_path / "broken")[-4:] == whole[-4:]
    assert {"noise_scale/optimizer/trace", "noise_scale/optimizer/biases/trace"} < whole[-1].keys()
    own = "noise_scale/optimizer/"
    assert [{key: row[key] for key in row if not key.startswith(own)} for row in whole] == euclidean


def test_what_was_loaded_is_known_before_the_next_measurement():
    """A resumed run that stops before it measures again prints it."""
    observer = NoiseScaleObserver(None, every=1, window=50)  # type: ignore[arg-type]
    observer.load({"groups": [], "measurements": [[[4.0, 1.0]]], "of_optimizer": [[[6.0, 2.0]]]})
    found = [(one.trace, one.grad_sq_norm) for one in (observer.latest, observer.latest_of_optimizer) if one]
    assert found == [(4.0, 1.0), (6.0, 2.0)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("optimizer._target_=torch.optim.Adadelta", "~optimizer.betas"), "preconditioner of Adadelta is not known"),
        (
            # In the other geometry, too: a report could not tell.
            ("+observers.noise_scale.groups.optimizer=[bias]", "observers.noise_scale.geometry=euclidean"),
            "noise_scale/optimizer/*, are those of the optimizer's",
        ),
        (("observers.noise_scale.every=null", "observers.noise_scale.groups=null"), "no effect without measurements"),
    ],
)
def test_a_geometry_that_cannot_be_measured_is_refused_before_the_run(overrides, words):
    config = compose_run(*SMALL, "observers.noise_scale.geometry=optimizer", *overrides)
    with pytest.raises(ConfigError) as refused:
        prepare(config, {})
    assert words in str(refused.value)
