"""A rank that makes the others wait is named while the run goes on as before.

Time is virtual: a step takes `USUAL_S`, on the slow rank `SLOW_S` more, and computing nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import MicroBatchLoader
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.signals import StopRequest
from largebatch.records.trackers import read_metrics
from largebatch.run.build import open_run
from largebatch.run.prepare import prepare
from largebatch.training.loop import Run, train
from largebatch.training.observers import StragglerObserver
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import SEED, lr_at, model_and_data
from tests.multiprocess.virtual_time import VirtualTime, virtual_time
from tests.unit.composing import compose_run
from tests.watching import AfterStep

STEPS = 12
USUAL_S, SLOW_S = 0.02, 0.06
Pauses = Callable[[int, int], float]  # (rank, step from 1) -> seconds


def even(rank: int, step: int) -> float:
    return USUAL_S


def slow(rank: int, step: int) -> float:
    """Rank 1 is, in every step."""
    return USUAL_S + (SLOW_S if rank == 1 else 0.0)


def recovering(rank: int, step: int) -> float:
    """Rank 1 is slow in eight steps, well in ten, and slow in eight again."""
    return slow(rank, step) if step <= 8 or step > 18 else USUAL_S


class PausingLoader:
    """Waits before the first micro-batch of each step, or before every one."""

    def __init__(self, loader: Any, time: VirtualTime, seconds: Pauses, rank: int, *, each: bool = False) -> None:
        self.loader, self.time, self.seconds, self.rank, self.each = loader, time, seconds, rank, each

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        step, last = 0, None
        for batch in self.loader.micro_batches(samples_seen, num_steps):
            step += batch.samples_seen != last
            if self.each or batch.samples_seen != last:
                self.time.sleep(self.seconds(self.rank, step))
            last = batch.samples_seen
            yield batch


def pause_in_forward(run: Run, time: VirtualTime, seconds: Pauses) -> None:
    def wait(*_: Any) -> None:
        time.sleep(seconds(run.runtime.rank, run.steps.number))

    run.module.register_forward_pre_hook(wait)


def trained(
    kind: str, *, seconds: Pauses | None = None, where: str = "data", observed: bool = True, **options: Any
) -> dict[str, Any]:
    """What a run said, its rows, and the bits of all that it moved."""
    with Runtime.open() as runtime, contextlib.ExitStack() as stack:
        time = VirtualTime() if seconds is None else stack.enter_context(virtual_time())
        model, loss, data, augment = model_and_data(kind)
        plan = BatchPlan.pinned(
            global_batch_size=options.pop("batch", 24), world_size=runtime.world_size, micro_batch_size=8
        )
        loader: Any = MicroBatchLoader(data, SampleOrder(len(data), SEED), plan, runtime.rank, augment=augment)
        if seconds is not None and where != "forward":
            loader = PausingLoader(loader, time, seconds, runtime.rank, each=where == "each micro-batch")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        options = {"num_steps": STEPS, "log_every": 1} | options
        run = made_run(runtime, model, loss, optimizer, plan, data, lr_at, seed=SEED, loader=loader, **options)
        if seconds is not None and where == "forward":
            pause_in_forward(run, time, seconds)
        watching = StragglerObserver(ratio=1.5, every=options["log_every"])
        rows: list[dict[str, Any]] = []
        if observed:
            run.observers = [watching, AfterStep(lambda *_: rows.append(watching.row))]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            status = train(run)
        tensors = [*run.module.state_dict().values(), *(one["momentum_buffer"] for one in optimizer.state.values())]
        bits = [one.numpy().tobytes() for one in (*tensors, torch.get_rng_state())]
        return {"status": status, "said": said.getvalue(), "rows": rows, "bits": bits}


def warnings(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("warning: ")]


@pytest.mark.fault(16, "straggler", "warning with rank and ratio, run goes on")
@pytest.mark.parametrize(
    ("kind", "where", "options"),
    [
        ("mlp", "data", {}),
        ("mlp", "forward", {"batch": 16}),
        ("mlp", "data", {"ordered": True}),
        ("masked", "data", {}),  # tokens are counted over ranks before the first forward pass: the others wait there
    ],
    ids=["data", "forward", "ordered", "tokens"],
)
def test_a_slow_rank_is_named_once_and_no_bit_of_the_run_is_another(ranks, kind, where, options):
    first, other = ranks(2).run(trained, kind, seconds=slow, where=where, **options)
    (line,) = warnings(first["said"])
    assert line.startswith("warning: rank 1 on ")
    assert "in 3 measurements in a row. All ranks wait for it in every step. Look there for other jobs" in line
    assert warnings(other["said"]) == [], "rank 0 speaks"
    assert first["rows"] == other["rows"], "every rank knows the same"
    expected = {"stragglers/slowest_rank": 1, "stragglers/ratio": pytest.approx((USUAL_S + SLOW_S) / USUAL_S)}
    assert first["rows"] == [expected] * STEPS
    plain = ranks(2).run(trained, kind, observed=False, **options)
    assert [one["bits"] for one in (first, other)] == [one["bits"] for one in plain]
    assert {one["status"] for one in (first, other, *plain)} == {"finished"}


@pytest.mark.fault(16)
def test_ranks_that_are_slow_alike_are_not_accused(ranks):
    for result in ranks(2).run(trained, "mlp", seconds=even):
        assert warnings(result["said"]) == []
        assert len(result["rows"]) == STEPS


def test_a_rank_with_more_micro_batches_is_not_accused(ranks):
    """Rank 0 has two of the three: twice the time of rank 1, whose share is half as large."""
    for result in ranks(2).run(trained, "mlp", seconds=even, where="each micro-batch"):
        assert warnings(result["said"]) == []
        assert [row["stragglers/ratio"] for row in result["rows"]] == pytest.approx([1.0] * STEPS)


def test_a_rank_is_named_again_after_it_has_recovered(ranks):
    first, _ = ranks(2).run(trained, "mlp", seconds=recovering, num_steps=26)
    lines = warnings(first["said"])
    steps = [int(line.partition(" step ")[2].split()[0]) for line in lines]
    assert all(line.startswith("warning: rank 1 on ") for line in lines)
    assert steps == [3, 21], lines


def test_a_rank_alone_is_compared_with_nobody(ranks):
    (result,) = ranks(1).run(trained, "mlp")
    assert (result["said"], result["rows"]) == ("", [{}] * STEPS)


def counted(*, observed: bool) -> tuple[Any, dict[str, Any]]:
    return count_collectives(lambda: trained("mlp", observed=observed, log_every=4, num_steps=10))


def test_only_steps_that_are_logged_cost_a_sum_and_no_bit_is_another(ranks):
    with_it, without = (ranks(3).run(counted, observed=observed) for observed in (True, False))
    for (found, result), (plain, other) in zip(with_it, without, strict=True):
        assert result["bits"] == other["bits"]
        assert [step for step, row in enumerate(result["rows"], start=1) if row] == [4, 8, 10]
        added = found - plain
        assert added["all_reduce", 3] == 3 + 1, "the times of 3 steps, and at the start the lengths of the hosts' names"
        assert sum(count for (kind, _), count in added.items() if kind == "all_reduce") == 3 + 2


def job(folder: str, ratio: str, slow_rank: int) -> str:
    """Train from a config; what was said."""
    overrides = (
        "data=digits", "data.limit=96", "model=mlp", "model.hidden=[8]", "batch.total=24", f"length={STEPS}steps",
        "schedule.warmup=1steps", "observers.evaluation.every=null", "observers.metrics.every=1", "logger=none",
        "observers.progress=false", "observers.ledger.enabled=true", "observers.ledger.parameters_every=1",
        f"observers.stragglers.ratio={ratio}",
    )  # fmt: skip
    prepared = prepare(compose_run(*overrides, f"run.dir={folder}"), os.environ)
    with virtual_time() as time, StopRequest() as stop, open_run(prepared, stop, []) as opened:
        pause_in_forward(opened.run, time, lambda rank, step: USUAL_S + (SLOW_S if rank == slow_rank else 0.0))
        with contextlib.redirect_stderr(io.StringIO()) as said:
            assert train(opened.run) == "finished"
    return said.getvalue()


@pytest.mark.fault(16)
@pytest.mark.parametrize(("world_size", "slow_rank"), [(2, 0), (3, 2)])
def test_a_run_names_a_slow_rank_and_has_the_ledger_of_one_that_does_not_look(ranks, tmp_path, world_size, slow_rank):
    said, *silent = ranks(world_size).run(job, str(tmp_path / "watched"), "1.5", slow_rank)
    (line,) = warnings(said)
    assert line.startswith(f"warning: rank {slow_rank} on {os.uname().nodename} is slow: step ")
    assert not any(map(warnings, silent))
    rows = read_metrics(tmp_path / "watched" / "metrics.jsonl")
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(1, STEPS + 1))
    assert [row["stragglers/slowest_rank"] for row in training] == [slow_rank] * STEPS
    assert not any(map(warnings, ranks(world_size).run(job, str(tmp_path / "off"), "null", slow_rank)))
    assert not any("stragglers/slowest_rank" in row for row in read_metrics(tmp_path / "off" / "metrics.jsonl"))
    ledgers = [read_metrics(tmp_path / name / "ledger.jsonl") for name in ("watched", "off")]
    assert len(ledgers[0]) == STEPS
    assert ledgers[0] == ledgers[1]
