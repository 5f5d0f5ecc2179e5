"""A run that was stopped and goes on is the run that was not, bit for bit: the truth is the run that nobody stopped.

Every way to have a gradient, in pairs with what else a run may do; on as many ranks as let an all-reduce choose an
order of its own, which two do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data import random_classification
from largebatch.diagnostics.sharpness.settings import SharpnessSettings
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.power_sgd import PowerSGDOptions
from largebatch.gradient.sharpness_aware import SharpnessAware
from largebatch.losses import CrossEntropy
from largebatch.optim import LAMB, LARS, MuonWithAdamW
from largebatch.records.checkpoint import newest_valid
from largebatch.records.run_folder import RunFolder
from largebatch.training.guard import Guard
from largebatch.training.loop import Observer, Run, train
from largebatch.training.observers import (
    CheckpointObserver,
    EvaluationObserver,
    GuardObserver,
    MetricsObserver,
    NoiseScaleObserver,
    RowLog,
    SharpnessObserver,
    restore,
)
from largebatch.training.step_report import StepReport
from largebatch.training.weight_average import AverageSettings, WeightAverage
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_coupled_gradients import SameClass

SAMPLES, STEPS, WIDE = 96, 6, 520  # 520 x 520 float32 are above 1 MiB, which DDP's first bucket holds
TIMES = {"wall_s", "eval/seconds", "train/samples_per_s", "memory/peak_bytes"}  # and all of `time/`
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "lars": lambda parameters: LARS(parameters, lr=0.5, momentum=0.9),
    "lamb": lambda parameters: LAMB(parameters, lr=0.05, max_grad_norm=0.5),
    "muon": lambda parameters: MuonWithAdamW(parameters, lr=0.02, adamw_patterns=["head"]),
}


@dataclass(frozen=True)
class Case:
    """One combination; `stops` are the steps after which one process ends and the next goes on."""

    stops: tuple[int, ...]
    optimizer: str = "sgd"
    micro: int = 4
    wide: bool = False
    frozen: bool = False
    chooses: bool = False
    coupled: bool = False
    clip: float | None = None
    ramp: bool = False
    short: bool = False
    bad_step: int | None = None
    precision: str = "fp32"
    background: bool = False
    average: AverageSettings | None = None
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "several buckets, accumulation": Case((1, 4), wide=True, clip=0.5),
    "one micro-batch, frozen layer, noise scale": Case((1, 4), "adamw", micro=8, frozen=True),
    "skipped modules": Case((2, 3), "lamb", chooses=True),
    "computed twice, guard": Case((1, 3), "lars", bad_step=2, options={"recompute_every": 2}),
    "coupled": Case((1, 4), "muon", coupled=True, background=True),
    "coupled, exact batch norm": Case((2, 3), coupled=True, options={"exact_batch_norm": True}),
    "exact batch norm, ramp": Case((1, 3), "lars", ramp=True, clip=0.5, options={"exact_batch_norm": True}),
    "short of memory": Case((1, 3, 4), "adamw", short=True, ramp=True),
    "each climbs, skipped modules": Case((3,), chooses=True, options={"sharpness_aware": SharpnessAware(0.1)}),
    "all climb": Case((1,), "lars", frozen=True, options={"sharpness_aware": SharpnessAware(0.1, "global")}),
    "in order": Case((3,), "muon", frozen=True, options={"ordered": True}),
    "compressed, ramp": Case((1, 4), "lamb", ramp=True, average=AverageSettings(0.01), options={"compression": "fp16"}),
    "PowerSGD": Case((1, 4), wide=True, options={"compression": "powersgd", "powersgd": PowerSGDOptions(2, 2)}),
    "fp64, guard, plain average": Case(
        (2, 5), "lars", bad_step=4, micro=2, clip=0.5, precision="fp64", average=AverageSettings(None, 24, 3)
    ),
}


class Net(nn.Module):
    """Named in another order than gradients come in; batch norms of both kinds and dropout."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.case, self.step = case, 1
        width = WIDE if case.wide else 8
        self.head = nn.Linear(width, 3)
        self.norms = nn.ModuleList([nn.BatchNorm1d(width), nn.BatchNorm1d(width, momentum=None)])
        self.stem, self.body, self.frozen = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, width)
        self.frozen.requires_grad_(not case.frozen)
        self.drop = nn.Dropout(0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.case.short and self.training and self.step >= 2 and len(inputs) > 2:
            raise torch.OutOfMemoryError("out of memory.")
        hidden = self.norms[0](self.stem(inputs)).relu()
        if not self.case.chooses or float(torch.rand(())) < 0.5:
            hidden = hidden + self.body(hidden)
        return self.head(self.drop(self.norms[1](self.frozen(hidden)).relu()))


class Rows:
    """A tracker that keeps rows, by step: an evaluation that is made up for comes behind other rows of its step."""

    problems: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, str]] = {}

    def log(self, row: dict[str, Any]) -> None:
        # As text: no number that is none is equal to itself.
        values = {key: repr(one) for key, one in row.items() if key not in TIMES and not key.startswith("time/")}
        known = self.by_step.setdefault(int(row["step"]), {})
        assert all(known[key] == values[key] for key in known.keys() & values.keys()), "no row comes twice with others"
        known.update(values)


class Stopper(Observer):
    """Ends the process after a step, on every rank."""

    def __init__(self, net: Net, stop: int | None) -> None:
        self._net, self._stop = net, stop

    def on_start(self, run: Run) -> None:
        self._net.step = run.progress.step + 1

    def after_step(self, run: Run, report: StepReport) -> bool:
        self._net.step = report.step + 1
        return report.step == self._stop


def run_of(case: Case, runtime: Runtime, folder: Path, rows: Rows, stop: int | None, every: int) -> Run:
    model, data = Net(case), random_classification(SAMPLES, 3, (6,), "train")
    loss = SameClass() if case.coupled else CrossEntropy()
    sizes = (12, 24) if case.ramp else (24,)
    plans = tuple(
        BatchPlan.pinned(global_batch_size=size, world_size=runtime.world_size, micro_batch_size=min(case.micro, size))
        for size in sizes
    )
    ramp = BatchRamp(plans, (24,) if case.ramp else ())
    journal = RowLog([rows], num_samples=SAMPLES)
    evaluation = EvaluationObserver(journal, train=data, validation=data, loss=loss, every=48, micro_batch_size=5)
    average = None if case.average is None else WeightAverage(case.average)
    evaluation.average = average
    observers: list[Any] = [MetricsObserver(journal, every=1), evaluation, GuardObserver(journal)]
    if not case.coupled and not {"exact_batch_norm", "powersgd", "sharpness_aware"} & case.options.keys():
        observers.append(NoiseScaleObserver(journal, every=2, window=20))
    if len(observers) == 4 and not case.wide:  # which would cost a second
        settings = SharpnessSettings(lanczos_iterations=2, lanczos_tolerance=0.1, trace_samples=2, m=4, rho=0.05)
        subset = FixedSubset.random(data, 8, seed=0, micro_batch_size=4)
        observers.append(SharpnessObserver(journal, subset=subset, loss=loss, settings=settings, seed=0, every=72))
    observers = [*observers, Stopper(model, stop)] if average is None else [average, *observers, Stopper(model, stop)]
    observers.append(
        CheckpointObserver(
            RunFolder(folder),
            every=every,
            keep=2,
            identity={},
            extra={},
            evaluation=evaluation,
            background=case.background,
        )
    )
    if case.bad_step is not None:
        model.head.weight.register_hook(lambda grad: grad * math.inf if model.step == case.bad_step else None)
    return made_run(
        runtime,
        model,
        loss,
        OPTIMIZERS[case.optimizer](model.named_parameters()),
        ramp,
        data,
        lambda seen: 0.1 / (1 + seen),
        STEPS,
        clip_norm=case.clip,
        log_every=1,
        skips_parameters=case.chooses,
        halves_micro_batches=case.short,
        guard=None if case.bad_step is None else Guard("skip", window=20, threshold=None, most_in_a_row=3),
        observers=observers,
        **case.options,
    )


def trained(name: str, folder: Path, *, stops: bool) -> dict[str, Any]:
    """Rows of all processes, and all that the last one's checkpoint holds."""
    case, rows = CASES[name], Rows()
    for stop in (*(case.stops if stops else ()), None):
        with Runtime.open(precision=case.precision) as runtime:
            run = run_of(case, runtime, folder, rows, stop, 24 if stops else 72)
            checkpoint, rejected = newest_valid(folder / "checkpoints")
            assert rejected == []
            runtime.barrier()
            if checkpoint is not None:
                assert checkpoint.step == run.steps.num_steps or checkpoint.step in case.stops
                gone = {"VarianceObserver": {"sizes": [], "rows": []}}  # of a version that measured the 1/B law
                checkpoint.values["memory"]["observers"] |= gone
                restore(run, checkpoint)
            assert train(run) == ("finished" if stop is None else "stopped")
            runtime.barrier()  # rank 0 has written
    saved, _ = newest_valid(folder / "checkpoints")
    assert saved is not None
    tensors = {f"{group} {key}": one for group, named in saved.tensors.items() for key, one in named.items()}
    return {"rows": rows.by_step, "values": saved.values, "bits": {key: _bits(one) for key, one in tensors.items()}}


def _bits(tensor: Tensor) -> tuple[str, bytes]:
    return str(tensor.dtype), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_stopped_is_the_one_that_was_not(ranks, tmp_path: Path, name: str):
    """Weights, buffers, optimizer, what each rank has of its own, and every column of every row but times.

    It is saved more often, too: nor does that show.
    """
    world = ranks(4 if name == "several buckets, accumulation" else 3)
    whole = world.run(trained, name, tmp_path / "whole", stops=False)
    stopped = world.run(trained, name, tmp_path / "stopped", stops=True)
    for ours, expected in zip(stopped, whole, strict=True):
        assert ours["rows"] == expected["rows"]
        differing = [key for key in expected["bits"] if ours["bits"].get(key) != expected["bits"][key]]
        assert (differing, ours["bits"].keys()) == ([], expected["bits"].keys())
        assert ours["values"] == expected["values"]
    rows = expected["rows"]
    assert sorted(rows) == list(range(1, STEPS + 1))
    assert "eval/val_loss" in rows[STEPS]
