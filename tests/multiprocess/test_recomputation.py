"""A gradient that is computed twice: a flipped bit is found before it is used, and without one no bit is different."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.data import random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.signals import StopRequest
from largebatch.losses import CrossEntropy
from largebatch.run.build import open_run
from largebatch.run.prepare import prepare
from largebatch.training.guard import Guard
from largebatch.training.loop import Run, train
from largebatch.training.observers import NoiseScaleObserver
from largebatch.training.row_log import RowLog
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import SEED, lr_at, model_and_data
from tests.unit.composing import compose_run
from tests.watching import AfterStep

STEPS = 5
HEAD = "4.weight"
ALONE = 0  # one process that no launcher has started, and so without DDP: this one


@dataclass(frozen=True)
class Case:
    """A run in which every `every`-th step is computed twice."""

    every: int | None
    kind: str = "convnet"
    batch: int = 24
    micro: int = 4
    precision: str = "fp32"
    compression: str = "none"
    noise_scale: bool = False
    guarded: bool = False


def on(ranks: Any, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns on each rank."""
    return [function(*arguments)] if world_size == ALONE else ranks(world_size).run(function, *arguments)


class Careless(nn.Module):
    """Writes into its inputs, counts in a buffer that it makes anew, and draws from numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes = self.passes + 1
        return self.linear(inputs.mul_(2)) * float(np.random.random()) * self.passes  # noqa: NPY002


def problem(kind: str) -> tuple[nn.Module, Any, Any, Any]:
    np.random.seed(0)  # noqa: NPY002
    if kind in ("convnet", "masked"):
        return model_and_data(kind)
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    model = Careless() if kind == "careless" else nn.Sequential(*layers)
    return model, CrossEntropy(), random_classification(48, 3, (6,), "train"), None


def run_of(runtime: Runtime, case: Case, **options: Any) -> Run:
    model, loss, data, augment = problem(case.kind)
    plan = BatchPlan.pinned(
        global_batch_size=case.batch, world_size=runtime.world_size, micro_batch_size=min(case.micro, case.batch)
    )
    watching = [NoiseScaleObserver(RowLog([], num_samples=48), every=2, window=20)] if case.noise_scale else []
    return made_run(
        runtime,
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        plan,
        data,
        lr_at,
        options.pop("steps", STEPS),
        seed=SEED,
        compression=case.compression,
        clip_norm=0.5 if case.guarded else None,
        guard=Guard("skip", window=20, threshold=None, most_in_a_row=3) if case.guarded else None,
        observers=watching,
        recompute_every=case.every,
        augment=augment,
        **options,
    )


def bits_of(run: Run) -> dict[str, str]:
    """All that a step may move."""
    tensors = dict(run.module.state_dict())
    for number, state in enumerate(run.optimizer.state.values()):
        tensors |= {f"optimizer {number} {name}": value for name, value in state.items() if value is not None}
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}


def trained(case: Case) -> dict[str, Any]:
    with Runtime.open(precision=case.precision) as runtime:
        run = run_of(runtime, case)
        status = train(run)
        generators = {"torch": torch.rand(1).item(), "numpy": np.random.random()}  # noqa: NPY002
        return {"status": status, **bits_of(run), **generators}


@pytest.mark.fault(21)
@pytest.mark.parametrize(
    ("case", "world_sizes"),
    [
        (Case(2), (ALONE, 1, 2)),
        (Case(1), (2,)),
        (Case(2, micro=12), (ALONE, 2)),
        (Case(2, batch=20), (2,)),  # 3 and 2 micro-batches
        (Case(2, "masked"), (ALONE, 2)),
        (Case(2, "careless"), (ALONE, 2)),
        (Case(2, precision="bf16"), (ALONE, 2)),
        (Case(2, precision="fp64", noise_scale=True), (ALONE, 2)),
        (Case(2, micro=24, noise_scale=True), (ALONE,)),  # split into two
        (Case(2, compression="fp16"), (2,)),
        (Case(2, guarded=True), (ALONE, 2)),
    ],
    ids=[
        "accumulated",
        "every step",
        "one pass",
        "uneven",
        "tokens",
        "careless",
        "bf16",
        "noise scale",
        "split",
        "fp16",
        "guard",
    ],
)  # fmt: skip
def test_steps_that_are_computed_twice_are_bit_for_bit_those_computed_once(ranks, case, world_sizes):
    """With batch norm, dropout and augmentation in all that are neither tokens nor careless."""
    for world_size in world_sizes:
        plain = on(ranks, world_size, trained, replace(case, every=None))
        assert on(ranks, world_size, trained, case) == plain
        assert {one["status"] for one in plain} == {"finished"}


def counted(case: Case) -> tuple[Any, Any]:
    return count_collectives(trained, case)


def test_a_step_that_is_computed_twice_costs_one_small_sum_and_other_steps_nothing(ranks):
    with_it, without = (ranks(2).run(counted, Case(every, "tiny")) for every in (2, None))
    for (found, _), (plain, _) in zip(with_it, without, strict=True):
        for calls in (found, plain):  # steps that take long on a busy machine agree more often
            del calls["all_reduce", 5]
        added = found - plain
        assert {kind: count for kind, count in added.items() if kind[0] == "all_reduce"} == {("all_reduce", 4): 2}
        assert not plain - found


class Flip:
    """Flips a bit of an element of the head's gradient, at the end of one of the passes of a step on one rank."""

    def __init__(self, run: Run, *, bit: int, where: str, rank: int, step: int, every: int) -> None:
        self.run, self.step, self.mask = run, step, (1 << bit) - (1 << 32 if bit == 31 else 0)
        count = len(run.steps.batches.ramp.at(0).micro_batches(run.runtime.rank))
        self.at = count * (2 if where == "step" and step % every == 0 else 1)
        self.calls = 0
        if run.runtime.rank == rank:
            dict(run.module.named_parameters())[HEAD].register_post_accumulate_grad_hook(self)

    def __call__(self, parameter: torch.Tensor) -> None:
        self.calls += self.run.steps.number == self.step
        if self.calls == self.at and self.run.steps.number == self.step:
            assert parameter.grad is not None
            parameter.grad.view(torch.int32)[1, 2] ^= self.mask


def flipped(bits: list[int], where: str, rank: int, step: int = 2) -> list[Any]:
    """For each bit: what the run said or came to, its steps, and whether anything moved since the step before."""
    found = []
    with Runtime.open() as runtime:
        for bit in bits:
            run = run_of(runtime, Case(2, "tiny"), steps=3)
            after: list[dict[str, str]] = []
            run.observers = [AfterStep(lambda run, _, after=after: after.append(bits_of(run)))]
            Flip(run, bit=bit, where=where, rank=rank, step=step, every=2)
            try:
                said = train(run)
            except RuntimeError as error:
                said = str(error)
            now = bits_of(run)
            statistics = {name for name in now if "running" in name or "tracked" in name}
            moved = {name for name in now if now[name] != after[-1].get(name)} - statistics
            found.append((said, run.progress.step, sorted(moved), now))
        return found


@pytest.mark.fault(21, "bit flip in a gradient before the sum", "found by recomputing, named, nothing updated or saved")
@pytest.mark.parametrize(("world_size", "rank"), [(ALONE, 0), (2, 1)])
@pytest.mark.parametrize("where", ["rehearsal", "step"])
def test_every_flipped_bit_is_found_before_it_is_used_and_named_on_all_ranks(ranks, world_size, rank, where):
    bits = list(range(32)) if world_size == ALONE else [0, 22, 23, 31]  # the ends of mantissa and exponent; the sign
    results = on(ranks, world_size, flipped, bits, where, rank)
    for result in results:
        for said, step, moved, _ in result:
            assert said.startswith("Step 2: a gradient computed twice")
            assert f"different bits: rank {rank} in {HEAD} (1 of 6 parameters differ). " in said
            assert f"the hardware of rank {rank} " in said
            assert (step, moved) == (1, []), "the step was not taken"
    assert len({tuple(one[0] for one in result) for result in results}) == 1


@pytest.mark.parametrize(("world_size", "rank"), [(ALONE, 0), (2, 1)])
def test_a_bit_that_flips_in_another_step_goes_unseen(ranks, world_size, rank):
    """The claims above have content."""
    for one in on(ranks, world_size, flipped, [30], "step", rank, 1):
        (hit,) = one
        assert hit[:2] == ("finished", 3)
    clean = on(ranks, world_size, flipped, [30], "step", rank, 99)[0][0]
    assert clean[:2] == ("finished", 3)
    assert clean[3] != hit[3], "the weights are others"


def job_with_flip(folder: str) -> tuple[str, int]:
    overrides = (
        "data=digits", "data.limit=96", "model=mlp", "model.hidden=[8]", "batch.total=24", "batch.micro=6",
        "length=9steps", "schedule.warmup=1steps", "observers.evaluation.every=null", "logger=none",
        "observers.progress=false", "observers.checkpoint.every=1steps", "observers.checkpoint.keep=9",
        "observers.recompute.every=4", "guard.policy=skip",
    )  # fmt: skip
    prepared = prepare(compose_run(*overrides, f"run.dir={folder}"), os.environ)
    with StopRequest() as stop, open_run(prepared, stop, []) as job:

        def flip(parameter: torch.Tensor) -> None:
            if job.run.steps.number == 8:
                assert parameter.grad is not None
                parameter.grad.view(torch.int32)[0] ^= next(masks)

        masks = iter([0, 0, 0, 1])  # two micro-batches, twice
        if job.run.runtime.rank == 1:
            list(job.run.module.parameters())[-1].register_post_accumulate_grad_hook(flip)
        try:
            return train(job.run), job.run.progress.step
        except RuntimeError as error:
            return str(error), job.run.progress.step


@pytest.mark.fault(21)
def test_nothing_is_saved_of_a_step_with_a_flipped_bit(ranks, tmp_path: Path):
    outcomes = ranks(2).run(job_with_flip, str(tmp_path))
    assert len(set(outcomes)) == 1
    message, step = outcomes[0]
    assert step == 7
    assert "Step 8: " in message
    assert "rank 1 in " in message
    assert ".bias (1 of " in message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"step_{n:08}" for n in range(1, 8)]


class Unsteady(nn.Linear):
    """Gives another result each time."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes = getattr(self, "passes", 0) + 1
        return super().forward(inputs) * self.passes


def unsteady() -> str:
    runtime = Runtime.open()
    try:
        run = run_of(runtime, Case(2, "tiny"))
        run.module[4].__class__ = Unsteady  # type: ignore[index,assignment]
        train(run)
        return ""
    except RuntimeError as error:
        return str(error)
    finally:
        runtime.close()


def test_an_operation_with_another_result_each_time_is_found_on_all_ranks_and_the_remedy_is_told(ranks):
    first, second = ranks(2).run(unsteady)
    assert first == second
    assert "rank 0 in 0.weight (6 of 6 parameters differ), rank 1 in 0.weight (6 of 6" in first
    assert "torch.use_deterministic_algorithms(True)" in first


def refused(**options: Any) -> str:
    runtime = Runtime.open()
    try:
        run_of(runtime, Case(2, "tiny"), **options)
        return ""
    except ValueError as error:
        return str(error)
    finally:
        runtime.close()


@pytest.mark.parametrize(
    ("option", "named"), [("ordered", "batch.reduction=ordered"), ("exact_batch_norm", "batch_norm=exact")]
)
def test_a_gradient_that_no_rank_has_a_part_of_cannot_be_computed_twice(ranks, option, named):
    (said,) = ranks(1).run(refused, **{option: True})
    assert said.startswith(f"observers.recompute.every=2: does not go with {named}: ")
