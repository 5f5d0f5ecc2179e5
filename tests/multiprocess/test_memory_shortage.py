"""A micro-batch that does not fit on one rank: all ranks take the step again in smaller ones, as if begun so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.data import random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.out_of_memory import MicroBatchTooLargeError
from largebatch.losses import CrossEntropy
from largebatch.training.loop import Observer, Run, train
from largebatch.training.observers import MetricsObserver, RowLog
from largebatch.training.observers.ledger import ids_over_ranks
from largebatch.training.observers.typical_times import TypicalTimes
from largebatch.training.step_report import StepReport
from tests.multiprocess.made_run import made_run

STEPS, BATCH = 6, 24
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 2.00 GiB."


@dataclass(frozen=True)
class Case:
    """A run whose last rank has room for `room` samples per micro-batch, from step `since` on."""

    room: int | None = None
    since: int = 1
    max_micro: int = 12
    place: str = "forward"
    survives: bool = True
    precision: str = "fp64"


class _Backward(torch.autograd.Function):
    """Hands on what comes, and runs out of memory on the way back."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(SAID)


class Hungry(nn.Module):
    """Fails for micro-batches that are too large for this rank."""

    def __init__(self, case: Case, *, is_small: bool) -> None:
        super().__init__()
        self.case, self.is_small, self.step = case, is_small, 1
        self.refused: list[int] = []

    def forward(self, value: Tensor) -> Tensor:
        case = self.case
        if not self.is_small or case.room is None or self.step < case.since or len(value) <= case.room:
            return value
        self.refused.append(len(value))
        if case.place == "forward":
            raise RuntimeError(SAID)
        return _Backward.apply(value)


class Watcher(Observer):
    """Plans and sample ids of all steps."""

    def __init__(self, hungry: Hungry) -> None:
        self.hungry = hungry
        self.sizes: list[int] = []
        self.ids: list[Any] = []

    def after_step(self, run: Run, report: StepReport) -> None:
        self.sizes.append(report.plan.max_micro_batch_size)
        self.ids.append(ids_over_ranks(run.runtime, report.plan, report.batch.taken).tolist())
        self.hungry.step = report.step + 1


def run_case(case: Case) -> dict[str, Any]:
    with Runtime.open(precision=case.precision) as runtime:
        torch.manual_seed(0)
        hungry = Hungry(case, is_small=runtime.rank == runtime.world_size - 1)
        norm = nn.BatchNorm1d(8) if case.room != 0 else nn.Identity()  # of a single sample there are no statistics
        model = nn.Sequential(nn.Linear(6, 8), norm, hungry, nn.Dropout(0.2), nn.Linear(8, 3))
        data = random_classification(BATCH * STEPS, 3, (6,), "train")
        plan = BatchPlan.solve(
            global_batch_size=BATCH, world_size=runtime.world_size, max_micro_batch_size=case.max_micro
        )
        watcher = Watcher(hungry)
        run = made_run(
            runtime,
            model,
            CrossEntropy(),
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            plan,
            data,
            lambda _: 0.1,
            STEPS,
            norms_every=2,
            log_every=3,
            halves_micro_batches=case.survives,
            observers=[watcher],
        )
        metrics = MetricsObserver(RowLog([], num_samples=len(data)))
        metrics.times = TypicalTimes(runtime.device)
        metrics.times.add(num_steps=1, step_s=1.0, data_s=0.0, communication_s=0.0)
        try:
            status = train(run)
        except MicroBatchTooLargeError as error:
            return {"error": str(error), "ranks": error.ranks, "steps": run.progress.step}
        run.gradient.statistics.merge()
        return {
            "status": status,
            "weights": {name: value.numpy() for name, value in run.module.state_dict().items()},
            "sizes": watcher.sizes,
            "ids": watcher.ids,
            "refused": hungry.refused,
            "measured": metrics.measured(run),
        }


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all((value == other["weights"][name]).all() for name, value in one["weights"].items())


@pytest.mark.fault(56, "out of memory on one rank", "all ranks lower the micro-batch and take the step again")
@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize(("world", "max_micro", "fits"), [(1, 24, 3), (2, 12, 3), (3, 8, 2)])
def test_a_run_that_does_not_fit_is_bit_for_bit_the_one_that_began_with_smaller_micro_batches(
    ranks, world, max_micro, fits, place
):
    found = ranks(world).run(run_case, Case(room=3, max_micro=max_micro, place=place))
    known = ranks(world).run(run_case, Case(max_micro=fits))
    for one, other in zip(found, known, strict=True):
        assert one["status"] == "finished"
        assert one["sizes"] == other["sizes"] == [fits] * STEPS
        assert one["ids"] == other["ids"]
        assert equal(one, other)
        assert (one["measured"], other["measured"]["step_time"]) == ({}, 1.0), "its time is of no planned micro-batch"
    assert [bool(one["refused"]) for one in found] == [False] * (world - 1) + [True]
    assert found[-1]["refused"][0] == max_micro


@pytest.mark.fault(56)
def test_a_shortage_in_the_middle_changes_the_cut_from_there_on_and_no_sample(ranks):
    whole, (first, second) = ranks(2).run(run_case, Case())[0], ranks(2).run(run_case, Case(room=6, since=4))
    assert first["sizes"] == [12, 12, 12, 6, 6, 6]
    assert first["ids"] == second["ids"] == whole["ids"]
    assert sorted(one for step in first["ids"] for one in step) == list(range(BATCH * STEPS))
    assert equal(first, second)
    assert not equal(first, whole), "batch norm and dropout follow the micro-batch: the cut must have changed something"


def test_where_nothing_is_short_the_run_is_that_of_overlapping_all_reduces(ranks):
    overlapping, own = (ranks(2).run(run_case, Case(survives=survives))[0] for survives in (False, True))
    for name, value in own["weights"].items():
        assert abs(value - overlapping["weights"][name]).max() <= 1e-12, name


@pytest.mark.fault(56)
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_single_sample_that_does_not_fit_ends_the_run_on_every_rank_and_says_where(ranks, place):
    for found in ranks(2).run(run_case, Case(room=0, since=3, place=place)):
        assert found["ranks"] == (1,)
        assert found["steps"] == 2
        assert found["error"].startswith("Out of memory on rank 1 with micro-batches of at most 1 sample.")
        assert "activation_checkpointing" in found["error"]


def test_without_being_asked_for_a_shortage_is_the_error_that_it_was(ranks):
    (answer,) = ranks(1).run(_shortage_of_a_plain_run)
    assert answer == SAID


def _shortage_of_a_plain_run() -> str:
    try:
        run_case(Case(room=3, survives=False))
    except RuntimeError as error:
        return str(error)
    return "no error"
