"""Ranks that are not the same run are named and stop together; the ledger is the same on any world."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import largebatch.run.rank_agreement
import largebatch.training.observers.checkpoints as checkpoints_module
from largebatch.batch.plan import BatchPlan
from largebatch.distributed import number_format
from largebatch.distributed.gather import disagreement, gather_ints, gather_texts
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.signals import StopRequest
from largebatch.gradient.batch_stream import Taken
from largebatch.records.checkpoint import CheckpointError
from largebatch.records.ledger import Ledger, compare_ledgers
from largebatch.records.trackers import read_metrics
from largebatch.run.build import open_run
from largebatch.run.checks.dry_run import sampled_content
from largebatch.run.precision import speed
from largebatch.run.prepare import prepare
from largebatch.training.loop import train
from largebatch.training.observers.ledger import ids_over_ranks
from tests.unit.composing import compose_run

SMALL = (
    "data=digits", "data.limit=96", "model=mlp", "model.hidden=[8]", "batch.total=24", "batch.micro=6",
    "length=20steps", "schedule.warmup=5steps", "observers.evaluation.every=null", "logger=none",
    "observers.progress=false", "observers.replicas.every=4",
)  # fmt: skip


def own_rank() -> int:
    return int(os.environ["RANK"])


def values_of_this_rank() -> Any:
    with Runtime.open() as runtime:
        rank = runtime.rank
        table = gather_ints(runtime, torch.tensor([rank, -(2**62) - rank]))
        return table.tolist(), gather_texts(runtime, "é" * rank * 3)


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_rank_learns_the_values_of_all(ranks, world_size):
    table = [[rank, -(2**62) - rank] for rank in range(world_size)]
    texts = ["é" * rank * 3 for rank in range(world_size)]
    assert ranks(world_size).run(values_of_this_rank) == [(table, texts)] * world_size


def format_of_this_rank(with_bf16: list[bool]) -> str:
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as stack:
        patched.setattr(number_format, "has_bf16", lambda device: with_bf16[own_rank()])
        return stack.enter_context(Runtime.open(precision="auto")).precision


@pytest.mark.parametrize(
    ("with_bf16", "agreed"),
    [([True, True, True], "bf16"), ([True, False, True], "fp32"), ([False, False, False], "fp32"), ([True], "bf16")],
)
def test_ranks_agree_on_a_number_format_that_the_device_of_each_has(ranks, with_bf16, agreed):
    assert ranks(len(with_bf16)).run(format_of_this_rank, with_bf16) == [agreed] * len(with_bf16)


def weights_by_lamb(folder: Path, has_compiler: list[bool], *overrides: str) -> tuple[bool, list[float]]:
    given = (*SMALL, "optimizer=lamb", "length=4steps", "schedule.warmup=0steps", f"run.root={folder}", *overrides)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speed, "reason_against", lambda device: None if has_compiler[own_rank()] else "no compiler")
        prepared = prepare(compose_run(*given), os.environ)
        with open_run(prepared, lambda: False, list(given)) as opened:
            train(opened.run)
            found = opened.run.model.parameters()
            return opened.decisions.compiled_optimizer.value, torch.cat([one.flatten() for one in found]).tolist()


def test_where_one_rank_has_no_compiler_all_take_the_same_path(ranks, tmp_path):
    mixed = ranks(2).run(weights_by_lamb, tmp_path / "mixed", [True, False])
    never = ranks(2).run(weights_by_lamb, tmp_path / "never", [True, True], "+optimizer.compile=false")
    assert mixed == never
    assert mixed[0] == mixed[1]
    assert mixed[0][0] is False


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([1, 1, 2], "x: rank 2 has 2; ranks 0 and 1 have 1"),
        ([2, 1, 1, 3, 1], "x: rank 0 has 2, rank 3 has 3; ranks 1, 2 and 4 have 1"),
        ([1, 2], "x: rank 1 has 2; rank 0 has 1 (no majority: either may be at fault)"),
        ([0, *[1] * 10], "x: rank 0 has 0; ranks 1, 2, 3, 4, 5, 6 and 4 more have 1"),
    ],
)
def test_the_rank_that_differs_from_the_most_is_named(values, sentence):
    assert disagreement(values).explain("x") == sentence
    assert disagreement([values[0]] * 5) is None


def run_with_fault(folder: str, fault: str, faulty: int, at_step: int, *overrides: str) -> tuple[str, int]:
    """Train; after the optimizer step `at_step`, one rank suffers. The error, and the step at which it came."""
    original, steps = Runtime.step, itertools.count(1)
    prepared = prepare(compose_run(*SMALL, *overrides, f"run.dir={folder}"), os.environ)
    with StopRequest() as stop, open_run(prepared, stop, []) as job:

        def step(runtime: Runtime, optimizer: torch.optim.Optimizer) -> None:
            original(runtime, optimizer)
            if next(steps) == at_step and runtime.rank == faulty:
                if fault == "weight":
                    list(job.run.module.parameters())[1].data[0] += 1e-3
                else:
                    job.run.progress.step += 1
                    job.run.progress.samples_seen += 24

        Runtime.step = step  # type: ignore[method-assign]
        try:
            return train(job.run), job.run.progress.step
        except RuntimeError as error:
            return str(error), job.run.progress.step
        finally:
            Runtime.step = original  # type: ignore[method-assign]


def run_on_a_full_disk(folder: str, background: bool) -> str:
    """Train where nothing can be saved and that is to stop the run; what this rank says."""
    how = ("observers.checkpoint.on_error=stop", "observers.checkpoint.every=4steps")
    overrides = (*how, f"observers.checkpoint.background={background}")
    prepared = prepare(compose_run(*SMALL, *overrides, f"run.dir={folder}"), os.environ)

    def refuse(*arguments: object, **options: object) -> Path:
        raise CheckpointError("No space left on device")

    original, checkpoints_module.save_checkpoint = checkpoints_module.save_checkpoint, refuse
    try:
        with StopRequest() as stop, open_run(prepared, stop, []) as job:
            return train(job.run)
    except CheckpointError as error:
        return str(error)
    finally:
        checkpoints_module.save_checkpoint = original


@pytest.mark.fault(26)
@pytest.mark.parametrize("background", [False, True])
def test_every_rank_learns_that_rank_0_could_not_save(ranks, tmp_path, background):
    said = ranks(2).run(run_on_a_full_disk, str(tmp_path), background)
    assert len(set(said)) == 1
    assert said[0].startswith("No space left on device The run stops here")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


@pytest.mark.fault(20, "weights drift on a rank", "found within k steps, named")
@pytest.mark.parametrize(("world_size", "faulty"), [(2, 1), (3, 0)])
def test_a_rank_with_another_weight_is_found_within_k_steps_and_named(ranks, tmp_path, world_size, faulty):
    """k = 4: changed after step 5, found after step 8."""
    outcomes = ranks(world_size).run(run_with_fault, str(tmp_path), "weight", faulty, 5)
    assert len(set(outcomes)) == 1, "every rank stops with the same words at the same step"
    message, step = outcomes[0]
    assert step == 8
    assert "after step 8, checksum of " in message
    assert "since step 4, where they still agreed" in message
    if world_size == 3:
        assert "bias: rank 0 has 0x" in message
        assert "; ranks 1 and 2 have 0x" in message
    else:
        assert "no majority" in message
    assert checkpoints(tmp_path) == []


@pytest.mark.fault(20)
def test_no_checkpoint_is_written_of_weights_that_ranks_do_not_share(ranks, tmp_path):
    saving = ("observers.checkpoint.every=3steps", "observers.checkpoint.keep=9")
    rarely = "observers.replicas.every=1000"
    outcomes = ranks(2).run(run_with_fault, str(tmp_path), "weight", 1, 5, rarely, *saving)
    assert {step for _, step in outcomes} == {6}, "compared because a checkpoint is due"
    assert checkpoints(tmp_path) == ["step_00000003"]


def test_the_final_weights_are_compared_before_they_are_saved(ranks, tmp_path):
    outcomes = ranks(2).run(run_with_fault, str(tmp_path), "weight", 1, 18, "length=19steps")
    assert all("after step 19" in message for message, _ in outcomes)
    assert checkpoints(tmp_path) == []


def test_without_comparison_torch_goes_on_with_different_weights(ranks, tmp_path):
    """The claims above have content."""
    overrides = ("observers.replicas.every=null",)
    assert ranks(2).run(run_with_fault, str(tmp_path), "weight", 1, 5, *overrides) == [("finished", 20)] * 2


@pytest.mark.fault(17, "rank skips a step", "stopped, named, nothing saved")
@pytest.mark.parametrize(
    ("at_step", "found_after", "overrides"),
    [
        (5, 7, ("observers.metrics.every=1",)),  # by the sum that goes with every row
        (9, 11, ("observers.metrics.every=10", "observers.replicas.every=1000")),
        (5, 8, ("observers.metrics.every=10",)),  # by the comparison of ranks
        (7, 8, ("observers.metrics.every=10",)),
        (
            5,
            6,
            ("observers.metrics.every=10", "observers.replicas.every=1000", "observers.checkpoint.every=6steps"),
        ),
    ],
)
def test_a_rank_that_skips_a_step_is_found_and_named(ranks, tmp_path, at_step, found_after, overrides):
    """Whatever the faulty rank believes to be due: it takes part in what the others do."""
    outcomes = ranks(3).run(run_with_fault, str(tmp_path), "step", 1, at_step, *overrides)
    assert len({message for message, _ in outcomes}) == 1
    message, step = outcomes[0]
    assert step <= found_after
    assert "teps done: rank 1 has" in message
    assert checkpoints(tmp_path) == []


def start_elsewhere(folder: str, offsets: tuple[int, ...]) -> str:
    prepared = prepare(compose_run(*SMALL, f"run.dir={folder}"), os.environ)
    with StopRequest() as stop, open_run(prepared, stop, []) as job:
        job.run.progress.step = offsets[own_rank()]
        try:
            return train(job.run)
        except RuntimeError as error:
            assert job.run.progress.step == offsets[own_rank()], "no step was taken"
            return str(error)


def test_ranks_that_start_at_different_steps_are_named_before_the_first_step(ranks, tmp_path):
    """6, 7, 8: in a mean over ranks the one in the middle would see nothing and wait for the others."""
    outcomes = ranks(3).run(start_elsewhere, str(tmp_path), (6, 7, 8))
    assert len(set(outcomes)) == 1
    assert "steps done: rank 1 has 7, rank 2 has 8; rank 0 has 6 (no majority" in outcomes[0]


class OtherImages(torch.utils.data.Dataset):
    """The images of the digits, changed on one rank."""

    def __init__(self, data: Any, change: str) -> None:
        self.data, self.change = data, change

    def __len__(self) -> int:
        return len(self.data) - (self.change == "length")

    def __getitem__(self, index: int) -> Any:
        inputs, target = self.data[index]
        last = index == len(self.data) - 1 and self.change == "content"
        return inputs, (target + 1) % 10 if last else target


@contextlib.contextmanager
def other_code():
    original = largebatch.run.rank_agreement._PACKAGE
    largebatch.run.rank_agreement._PACKAGE = original / "observers"
    try:
        yield
    finally:
        largebatch.run.rank_agreement._PACKAGE = original


def start_with_fault(folder: str, faulty: int, overrides: tuple[str, ...], fault: str) -> str:
    """What `open_run` says when one rank is another run."""
    is_faulty = own_rank() == faulty
    prepared = prepare(
        compose_run(*SMALL, *(overrides if is_faulty else ()), f"run.dir={folder}/{own_rank()}"), os.environ
    )
    change = fault if is_faulty else ""
    if fault in ("length", "content"):
        object.__setattr__(prepared, "train", OtherImages(prepared.train, change))
        object.__setattr__(prepared, "content", sampled_content(prepared.config, prepared.train))
    if change == "weights":
        next(iter(prepared.model.parameters())).data.view(-1)[0] += 1e-3
    with other_code() if change == "code" else contextlib.nullcontext():
        try:
            with StopRequest() as stop, open_run(prepared, stop, []):
                return "started"
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"


@pytest.mark.fault(18, "other config on a rank", "refused: key and both values")
@pytest.mark.fault(19, "other code, data, seed on a rank", "refused")
@pytest.mark.parametrize(
    ("overrides", "fault", "lines"),
    [
        (("clip_norm=2.5",), "", ["config clip_norm: rank 1 has 2.5; ranks 0 and 2 have None"]),
        (("seed=4",), "", ["config seed: rank 1 has 4; ranks 0 and 2 have 0", "initial weights: rank 1 has 0x"]),
        (("batch.total=36", "resume=auto"), "", ["config batch.total: rank 1 has 36; ranks 0 and 2 have 24",
                                                 "config resume: rank 1 has auto; ranks 0 and 2 have none"]),
        ((), "code", ["code of largebatch: rank 1 has "]),
        ((), "length", ["length of the training set: rank 1 has 95; ranks 0 and 2 have 96"]),
        ((), "content", ["samples of the training set: rank 1 has "]),
        ((), "weights", ["initial weights: rank 1 has 0x"]),
    ],
    ids=["config", "seed", "two keys", "code", "length", "content", "weights"],
)  # fmt: skip
def test_a_rank_of_another_run_is_refused_by_name_before_anything_is_written(ranks, tmp_path, overrides, fault, lines):
    outcomes = ranks(3).run(start_with_fault, str(tmp_path), 1, overrides, fault)
    assert len(set(outcomes)) == 1, outcomes
    assert outcomes[0].startswith("LauncherError: The ranks of this job are not the same run:\n")
    for line in lines:
        assert f"\n  - {line}" in outcomes[0], outcomes[0]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_ranks_may_differ(ranks, tmp_path):
    assert ranks(2).run(start_with_fault, str(tmp_path), 1, ("run.name=other",), "") == ["started"] * 2


def delivered_ids(world: int, wrong: str) -> list[int]:
    """Ids over ranks when rank 1 gets its two micro-batches as `wrong` says."""
    with Runtime.open() as runtime:
        plan = BatchPlan.pinned(global_batch_size=10, world_size=world, micro_batch_size=3)
        ids = np.arange(100, 110)
        own = [(part.index, ids[part.offset : part.offset + part.size]) for part in plan.micro_batches(runtime.rank)]
        if runtime.rank == 1 and wrong:
            own = {
                "exchanged": [(own[0][0], own[1][1]), (own[1][0], own[0][1])],
                "missing": own[:1],
                "repeated": [*own, own[0]],
                "too long": [*own[:1], (own[1][0], np.arange(50))],
                "nowhere": [*own[:1], (77, own[1][1])],
                "turned": [(own[0][0], own[0][1][::-1]), own[1]],
            }[wrong]
        return ids_over_ranks(runtime, plan, [Taken(index, asked, ()) for index, asked in own]).tolist()


def test_the_ids_of_a_global_batch_are_those_that_the_ranks_were_given(ranks):
    right = list(range(100, 110))
    for world_size in (1, 2, 3):
        assert ranks(world_size).run(delivered_ids, world_size, "") == [right] * world_size
    assert ranks(2).run(delivered_ids, 2, "missing")[0] == [*right[:9], -1]
    assert ranks(2).run(delivered_ids, 2, "turned")[0] == [*right[:6], 108, 107, 106, 109]
    for wrong in ("exchanged", "repeated", "too long", "nowhere"):
        one, two = ranks(2).run(delivered_ids, 2, wrong)
        assert one == two != right


def ledger_of(ranks: Any, world_size: int, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    options = ("observers.ledger.enabled=true", "observers.ledger.parameters_every=5", *overrides)
    outcomes = ranks(world_size).run(run_with_fault, str(folder), "", -1, 0, *options)
    assert outcomes == [("finished", 20)] * world_size
    return read_metrics(folder / "ledger.jsonl")


@pytest.mark.parametrize("reduction", ["ordered", "all_reduce"])
def test_the_ledger_is_the_same_on_1_2_and_3_ranks(ranks, tmp_path, reduction):
    """Ids and rates always; weights bit for bit with an ordered reduction; losses to the rounding of a sum."""
    first = ledger_of(ranks, 1, tmp_path / "1", f"batch.reduction={reduction}")
    assert [row["step"] for row in first] == list(range(1, 21))
    assert [row["step"] for row in first if "parameters" in row] == [5, 10, 15, 20]
    for world_size in (2, 3):
        folder = tmp_path / str(world_size)
        other = ledger_of(ranks, world_size, folder, f"batch.reduction={reduction}")
        comparison = compare_ledgers(Ledger(first), Ledger(other))
        found = {one.field: one for one in comparison.fields}
        assert all(not found[field].differing_steps for field in ("samples_seen", "ids", "lr"))
        if reduction == "ordered":
            assert not found["parameters"].differing_steps
            assert found["loss"].largest < 1e-12
        else:
            assert found["parameters"].differing_steps, "the claim above has content"
            assert found["loss"].largest < 1e-4


def test_ids_do_not_depend_on_how_the_batch_is_cut(ranks, tmp_path):
    one = ledger_of(ranks, 1, tmp_path / "one", "batch.micro=null", "batch.max_micro=24")
    other = ledger_of(ranks, 2, tmp_path / "other", "batch.micro=null", "batch.max_micro=5")
    assert [(row["ids"], row["lr"]) for row in one] == [(row["ids"], row["lr"]) for row in other]
    seed = ledger_of(ranks, 1, tmp_path / "seed", "seed=1")
    assert all(ours["ids"] != theirs["ids"] for ours, theirs in zip(one, seed, strict=True))
