"""Averages of weights are those of the definition, on any number of ranks, through ramps and skipped steps."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data import random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy
from largebatch.run.build import open_run
from largebatch.run.prepare import prepare
from largebatch.training.guard import Guard
from largebatch.training.loop import Observer, Run, train
from largebatch.training.observers import EvaluationObserver, RowLog
from largebatch.training.step_report import StepReport
from largebatch.training.weight_average import AverageSettings, WeightAverage, average_of
from tests.multiprocess.made_run import made_run
from tests.unit.composing import compose_run

pytestmark = pytest.mark.quick

SIZES, MILESTONE, STEPS, BAD = (12, 24), 48, 9, 6  # four steps of 12, five of 24; the sixth is left out
KINDS = {
    "half-life": AverageSettings.of_half_life(50),
    "decay per 24, every third step": AverageSettings.of_decay(0.8, 24, every=3),
    "from a moment on": AverageSettings.of_half_life(30, start=30),
    "plain mean": AverageSettings(None, start=24),
}


class Net(nn.Module):
    """A shared weight, a frozen layer, a batch norm, and a hook that spoils the gradient of one step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm, self.frozen = nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.body.weight = self.stem.weight
        self.frozen.requires_grad_(False)
        self.step = 1
        self.head.weight.register_hook(lambda grad: grad * math.inf if self.step == BAD else None)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.frozen(self.body(self.stem(inputs).tanh()))))


class Watcher(Observer):
    """Keeps the weights after each step, and tells the model its number."""

    def __init__(self, net: Net) -> None:
        self.net, self.weights, self.sizes = net, [weights_of(net)], list[int]()

    def after_step(self, run: Run, report: StepReport) -> None:
        self.net.step = report.step + 1
        self.sizes.append(0 if report.is_skipped else report.plan.global_batch_size)
        self.weights.append(weights_of(run.module))


class Kept:
    """A tracker that keeps rows."""

    problems: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def weights_of(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: one.detach().numpy().copy() for name, one in net.named_parameters() if one.requires_grad}


def trained(kind: str | None) -> dict[str, Any]:
    """Weights after each step, the average, and the evaluation by it and by hand."""
    with Runtime.open(precision="fp64") as runtime:
        net, data, rows = Net().double(), random_classification(48, 3, (6,), "train"), Kept()
        validation = random_classification(20, 3, (6,), "validation")
        plans = [
            BatchPlan.pinned(global_batch_size=size, world_size=runtime.world_size, micro_batch_size=4)
            for size in SIZES
        ]
        ramp, watcher = BatchRamp(tuple(plans), (MILESTONE,)), Watcher(net)
        average = None if kind is None else WeightAverage(KINDS[kind])
        evaluation = EvaluationObserver(
            RowLog([rows], num_samples=48), train=data, validation=validation, loss=CrossEntropy(), every=None,
            micro_batch_size=3, average=average,
        )  # fmt: skip
        guard = Guard("skip", window=20, threshold=None, most_in_a_row=3)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        run = made_run(
            runtime, net, CrossEntropy(), optimizer, ramp, data, lambda _: 0.1, STEPS, guard=guard,
            observers=[one for one in (average, watcher, evaluation) if one],
        )  # fmt: skip
        assert train(run) == "finished"
        found = {"weights": watcher.weights, "sizes": watcher.sizes, "row": rows.rows[-1]}
        found["state"] = {name: one.numpy().copy() for name, one in run.module.state_dict().items()}
        if average is not None:
            found["average"] = {name: one.numpy() for name, one in average.tensors(run.module).items()}
            inputs, targets = validation.fetch(np.arange(20))
            with average.in_place(net.eval()), torch.no_grad():
                found["loss"] = F.cross_entropy(net(inputs.double()), targets).item()
            after = {name: one.numpy() for name, one in run.module.state_dict().items()}
            assert all((after[name] == one).all() for name, one in found["state"].items())
        return found


def by_definition(settings: AverageSettings, weights: Sequence[Any], sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Each present weight counts by the samples of its update, and by those that came later."""
    full = [*SIZES[:1] * 4, *SIZES[1:] * 5]
    begins = next(step for step in range(STEPS + 1) if sum(full[:step]) >= settings.start)
    shares, waiting, counted = {begins: 1.0}, 0, 0
    for step in range(begins + 1, STEPS + 1):
        waiting += sizes[step - 1]
        if step % settings.every or not sizes[step - 1]:
            continue
        new = waiting / (waiting + counted) if settings.rate is None else 1 - math.exp(-settings.rate * waiting)
        shares = {at: share * (1 - new) for at, share in shares.items()} | {step: new}
        counted, waiting = counted + waiting, 0
    return {name: sum(share * weights[at][name] for at, share in shares.items()) for name in weights[0]}


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_average_is_that_of_the_definition_and_evaluated(world_size: int, ranks: Any):
    for kind, settings in KINDS.items():
        for found in ranks(world_size).run(trained, kind):
            assert found["sizes"] == [12, 12, 12, 12, 24, 0, 24, 24, 24]
            truth = by_definition(settings, found["weights"], found["sizes"])
            assert found["average"].keys() == truth.keys() | {"body.weight"}
            for name, one in truth.items():
                assert np.abs(found["average"][name] - one).max() < 1e-14, (kind, name)
            assert (found["average"]["body.weight"] == found["average"]["stem.weight"]).all()
            assert found["row"]["eval/ema_val_loss"] == pytest.approx(found["loss"], rel=1e-12)
            assert found["row"]["eval/ema_val_loss"] != found["row"]["eval/val_loss"]


def test_the_run_is_bit_for_bit_the_one_without_an_average(ranks: Any):
    plain, averaged = (ranks(3).run(trained, kind)[0]["state"] for kind in (None, "half-life"))
    assert all((plain[name] == averaged[name]).all() for name in plain)


@pytest.mark.parametrize("settings", [AverageSettings.of_decay(0.9, 8), AverageSettings(None)])
def test_torch_averages_alike_where_the_batch_is_the_same(settings: AverageSettings):
    """`AveragedModel` copies the first weights that it sees; ours is begun with them."""
    torch.manual_seed(0)
    model, average = nn.Linear(3, 2).double(), WeightAverage(settings)
    theirs = AveragedModel(model, multi_avg_fn=None if settings.rate is None else get_ema_multi_avg_fn(0.9))
    average.begin(model)
    if settings.rate is not None:
        theirs.update_parameters(model)
    for _ in range(5):
        for one in model.parameters():
            nn.init.normal_(one)
        average.update(model, 8)
        theirs.update_parameters(model)
    for name, one in theirs.module.named_parameters():
        assert torch.allclose(average.tensors(model)[name], one, rtol=0, atol=1e-14)


def test_weights_of_half_precision_have_an_average_of_full_precision():
    """In bfloat16 a share of 1e-3 would round away."""
    model, average = nn.Linear(1, 1, bias=False).bfloat16(), WeightAverage(AverageSettings.of_decay(0.999, 1))
    nn.init.zeros_(model.weight)
    average.begin(model)
    nn.init.ones_(model.weight)
    for _ in range(1000):
        average.update(model, 1)
    assert average.tensors(model)["weight"].item() == pytest.approx(1 - 0.999**1000, rel=1e-4)


class Remembers(Observer):
    """The average after the second step."""

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}

    def after_step(self, run: Run, report: StepReport) -> None:
        if report.step == 2:
            average = average_of(run)
            assert average is not None
            self.average = {name: one.clone() for name, one in average.tensors(run.module).items()}


def rolled_back(folder: Path) -> tuple[dict[str, int], float]:
    """The counts and the largest difference of an average after a return to the checkpoint of its second step."""
    config = compose_run(
        "data=digits", "model=mlp", "logger=none", "observers.progress=false", "data.limit=96", "batch.total=24",
        "length=3steps", "schedule.warmup=0ep", "ema.half_life=2steps", "observers.checkpoint.every=2steps",
        "observers.evaluation.every=null", f"run.dir={folder}/run",
    )  # fmt: skip
    with open_run(prepare(config, os.environ), lambda: False, ()) as opened:
        remembers, run = Remembers(), opened.run
        opened.run = replace(run, observers=[*run.observers, remembers])
        train(opened.run)
        run.runtime.barrier()
        if run.runtime.is_main:
            shutil.rmtree(opened.folder.checkpoints / "step_00000003")
        run.runtime.barrier()
        assert opened.checkpoints.roll_back(opened.run)
        average = average_of(opened.run)
        assert average is not None
        found = average.tensors(run.module)
        return average.counts(), max(float((found[name] - one).abs().max()) for name, one in remembers.average.items())


def test_a_guard_that_goes_back_takes_the_average_along(ranks: Any, tmp_path: Path):
    for counts, difference in ranks(2).run(rolled_back, tmp_path):
        assert counts == {"counted": 48, "waiting": 0}
        assert difference == 0
