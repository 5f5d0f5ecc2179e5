"""A batch that is bad on one rank: all ranks leave the same step out, and nothing of it stays anywhere."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import MicroBatchLoader, random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy
from largebatch.records.trackers import read_metrics
from largebatch.run.train_quietly import train_quietly
from largebatch.training.guard import Guard
from largebatch.training.loop import Observer, Run, train
from largebatch.training.step_report import StepReport
from tests.multiprocess.made_run import made_run
from tests.unit.data.faulty_data import BATCH_NORM, at_steps, faulty

STEPS = 12
BAD_STEP = 5


@dataclass(frozen=True)
class Case:
    """A run with a fault in the share of one rank in some steps."""

    fault: str  # "inputs", "gradient", "loss" or "none"
    steps: tuple[int, ...] = (BAD_STEP,)
    policy: str = "skip"
    ordered: bool = False
    exact: bool = False
    most_in_a_row: int = 5


class FaultyLoader:
    """Multiplies the inputs of the last rank's first micro-batch of the faulty steps by NaN."""

    def __init__(self, loader: MicroBatchLoader, case: Case, is_faulty: bool) -> None:
        self.loader, self.case, self.is_faulty = loader, case, is_faulty

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        for batch in self.loader.micro_batches(samples_seen, num_steps):
            if self.is_faulty and self.case.fault == "inputs" and batch.samples_seen // 24 + 1 in self.case.steps:
                batch.inputs.mul_(math.nan)
            yield batch


class Watcher(Observer):
    """What each step did to weights, momentum and buffers of this rank."""

    def __init__(self) -> None:
        self.actions: list[str] = []
        self.moved: list[bool] = []
        self.finite: list[bool] = []
        self._before: list[torch.Tensor] = []

    def on_start(self, run: Run) -> None:
        self._before = self._state(run)

    def after_step(self, run: Run, report: StepReport) -> None:
        now = self._state(run)
        self.actions.append(report.decision.action if report.decision else "unguarded")
        old = self._before if len(self._before) == len(now) else None
        self.moved.append(old is None or not all(map(torch.equal, now, old)))
        gradients = [one.grad for one in run.module.parameters() if one.grad is not None]
        self.finite.append(all(bool(one.isfinite().all()) for one in [*now, *gradients]))
        self._before = now

    def _state(self, run: Run) -> list[torch.Tensor]:
        momentum = [value for state in run.optimizer.state.values() for value in state.values() if value is not None]
        return [one.detach().clone() for one in [*run.module.state_dict().values(), *momentum]]


def guarded_run(case: Case) -> dict[str, Any]:
    runtime = Runtime.open(precision="fp64")
    is_faulty = int(os.environ["RANK"]) == runtime.world_size - 1
    try:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        data = random_classification(24 * STEPS, 3, (6,), "train")
        plan = BatchPlan.pinned(global_batch_size=24, world_size=runtime.world_size, micro_batch_size=6)
        watcher = Watcher()
        run = made_run(
            runtime,
            model,
            CrossEntropy(),
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
            plan,
            data,
            lambda samples_seen: 0.05 / (1 + samples_seen / 100),
            STEPS,
            ordered=case.ordered,
            exact_batch_norm=case.exact,
            guard=None
            if case.policy == "off"
            else Guard(case.policy, window=20, threshold=None, most_in_a_row=case.most_in_a_row),
            observers=[watcher],
            loader=FaultyLoader(MicroBatchLoader(data, SampleOrder(len(data), 0), plan, runtime.rank), case, is_faulty),
        )
        if case.fault == "gradient" and is_faulty:
            model[0].weight.register_hook(lambda grad: grad * math.inf if run.steps.number in case.steps else None)
        status = train(run)
        run.gradient.statistics.merge()
        return {
            "status": status,
            "step": run.progress.step,
            "samples_seen": run.progress.samples_seen,
            "actions": watcher.actions,
            "moved": watcher.moved,
            "finite": watcher.finite,
            "state": [value.double().numpy() for value in run.module.state_dict().values()],
            "guard": None if run.guard is None else run.guard.state(),
        }
    finally:
        runtime.close()


@pytest.mark.fault(22, "NaN loss on one rank", "that step left out on all ranks, n in a row end the run")
@pytest.mark.fault(23, "Inf in one gradient", "as 22")
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("fault", ["inputs", "gradient"])
@pytest.mark.parametrize("way", [{}, {"ordered": True}, {"exact": True}], ids=["all-reduce", "ordered", "exact"])
def test_a_fault_on_one_rank_is_one_skipped_step_on_all_of_them(ranks, world_size, fault, way):
    results = ranks(world_size).run(guarded_run, Case(fault, **way))
    expected = ["skip" if step == BAD_STEP else "none" for step in range(1, STEPS + 1)]
    for result in results:
        assert (result["status"], result["step"], result["samples_seen"]) == ("finished", STEPS, 24 * STEPS)
        assert result["actions"] == expected
        assert result["moved"] == [action == "none" for action in expected], "weights, momentum and buffers"
        assert all(result["finite"]), "no NaN in weights, gradients, momentum or running statistics"
        assert result["guard"] == results[0]["guard"], "decided by the same numbers"
        for ours, first in zip(result["state"], results[0]["state"], strict=True):
            assert (ours == first).all()


def test_two_ranks_with_a_skipped_step_end_where_one_does(ranks):
    one, two = (ranks(world_size).run(guarded_run, Case("inputs"))[0] for world_size in (1, 2))
    for ours, theirs in zip(two["state"], one["state"], strict=True):
        assert abs(ours - theirs).max() <= 1e-12 * max(abs(theirs).max(), 1)
    assert two["guard"]["losses"] == pytest.approx(one["guard"]["losses"], rel=1e-12)
    assert two["guard"]["grad_norms"] == pytest.approx(one["guard"]["grad_norms"], rel=1e-11)


def test_without_a_bad_step_two_guarded_ranks_are_bit_for_bit_unguarded_ones(ranks):
    guarded, off = (ranks(2).run(guarded_run, Case("none", policy=policy)) for policy in ("skip", "off"))
    for ours, theirs in zip(guarded, off, strict=True):
        assert all((one == other).all() for one, other in zip(ours["state"], theirs["state"], strict=True))
    assert set(guarded[0]["actions"]) == {"none"}


@pytest.mark.fault(22)
def test_bad_steps_in_a_row_end_the_run_on_all_ranks_after_the_same_step(ranks):
    case = Case("inputs", steps=(2, 4, 5, 6, 7), most_in_a_row=3)
    for result in ranks(2).run(guarded_run, case):
        assert (result["status"], result["step"]) == ("diverged", 6)
        assert all(result["finite"])


def test_without_a_guard_such_a_fault_ends_the_run_as_it_always_did(ranks):
    for result in ranks(2).run(guarded_run, Case("inputs", policy="off")):
        assert result["status"] == "diverged"
        assert result["step"] == 11, "short steps are agreed on where a row is logged, one step late"


def rolled_back_run(folder: str, *overrides: str) -> dict[str, Any]:
    """The evaluation of step 6 merges running statistics that step 7 takes back."""
    asked = (
        "guard.policy=rollback",
        "observers.evaluation.every=3steps",
        "observers.checkpoint.every=4steps",
        "observers.checkpoint.keep=9",
        "batch.micro=8",
    )
    config = faulty(*BATCH_NORM, *asked, *overrides, "length=10steps", factors=at_steps({7: math.nan}))
    trained = train_quietly(config, folder)
    state = {name: value.double().numpy() for name, value in trained.model.state_dict().items()}
    return {"status": trained.status, "rolled_back": trained.summary["guard/rolled_back"], "state": state}


def test_two_ranks_go_back_to_the_same_checkpoint_and_end_where_one_does(ranks, tmp_path):
    (one,) = ranks(1).run(rolled_back_run, str(tmp_path / "one"), "precision=fp64")
    two = ranks(2).run(rolled_back_run, str(tmp_path / "two"), "precision=fp64")
    for result in [one, *two]:
        assert (result["status"], result["rolled_back"]) == ("finished", 1)
        for name, value in result["state"].items():
            assert abs(value - one["state"][name]).max() <= 1e-10 * max(abs(one["state"][name]).max(), 1), name
    rows = read_metrics(tmp_path / "two" / "ledger.jsonl")
    assert [row.get("guard") for row in rows] == [None] * 6 + ["rollback"] + [None] * 3
    assert rows[6]["parameters"] == rows[3]["parameters"]
