"""Communication that is known because a test adds it, in virtual time: an all-reduce takes d longer, and d is found."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.__main__ import main
from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import MicroBatchLoader, random_classification
from largebatch.diagnostics.communication import all_reduces
from largebatch.diagnostics.communication.all_reduces import time_all_reduces
from largebatch.diagnostics.communication.costs import TransferFit
from largebatch.diagnostics.communication.prediction import predict_step
from largebatch.diagnostics.communication.steps import StepTimes, time_steps
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy
from largebatch.models import MLP
from largebatch.training.loop import Run, train
from largebatch.training.observers import CommunicationObserver, RowLog
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import SEED, lr_at, model_and_data
from tests.multiprocess.virtual_time import VirtualTime, virtual_time
from tests.watching import Rows

DELAY_S, COMPUTING_S = 0.2, 0.1
BATCH, STEPS = 8, 12
same = functools.partial(pytest.approx, rel=1e-9, abs=1e-9)  # rounding of sums of a few numbers of this size


class Pause(nn.Module):
    """The identity, but the backward pass takes `seconds(step)` longer."""

    def __init__(self, time: VirtualTime, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.time, self.seconds = time, seconds
        self.calls = itertools.count()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = inputs * 1
        number = next(self.calls)
        outputs.register_hook(lambda gradient: self.time.sleep(self.seconds(number)))
        return outputs


def never(step: int, bucket: Any) -> float:
    return 0.0


def always(step: int, bucket: Any) -> float:
    return DELAY_S


def every_other(step: int, bucket: Any) -> float:
    return DELAY_S * (step % 2)


def every_other_but_the_last_bucket(step: int, bucket: Any) -> float:
    return 0.0 if bucket.is_last() else DELAY_S * (step % 2)


def run_of(runtime: Runtime, problem: tuple[Any, ...], *, observers: Any, steps: int = STEPS, **options: Any) -> Run:
    model, loss, data, augment = problem
    plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=BATCH // 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options |= {"seed": SEED, "observers": observers, "augment": augment}
    return made_run(runtime, model, loss, optimizer, plan, data, lr_at, steps, **options)


def problem_of(model: nn.Module) -> tuple[Any, ...]:
    return model, CrossEntropy(), random_classification(48, 5, (8,), "train"), None


def measured(kind: str) -> list[dict[str, Any]]:
    """Rows of a run in which every other step has a delay."""
    delays = {"exposed": every_other, "hidden": every_other_but_the_last_bucket, "straggler": never}[kind]
    with Runtime.open() as runtime, virtual_time(delays) as time:
        late = DELAY_S if kind == "straggler" and runtime.rank == 1 else 0.0
        pause = Pause(time, lambda step: COMPUTING_S + late * (step % 2))
        layers: list[nn.Module] = [nn.Linear(8, 8), pause, nn.Linear(8, 5)]
        if kind == "hidden":  # the last layer fills a bucket of its own, which is sent while the first one waits
            layers = [nn.Linear(8, 8), Pause(time, lambda step: 1.5 * DELAY_S), nn.Linear(8, 40_000)]
        rows = Rows()
        observer = CommunicationObserver(RowLog([rows], num_samples=48), every=1, repetitions=1)
        train(run_of(runtime, problem_of(nn.Sequential(*layers)), observers=[observer]))
        return rows.rows


def added(rows: list[dict[str, Any]], key: str) -> float:
    """Median of the delayed steps less that of the others; the first two set DDP up."""
    values = [row[f"communication/{key}"] for row in rows[2:]]
    return statistics.median(values[1::2]) - statistics.median(values[0::2])


def of_communication(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key.startswith("communication/")}


def test_a_delay_that_nothing_hides_is_measured_as_exposed_communication(ranks):
    rows, others = ranks(2).run(measured, "exposed")
    for key in ("exposed_s", "total_s"):
        assert added(rows, key) == same(DELAY_S), key
    assert added(rows, "straggler_wait_s") == same(0)
    assert rows[3]["communication/share_of_step"] == same(DELAY_S / (DELAY_S + COMPUTING_S))
    assert [of_communication(row) for row in rows] == [of_communication(row) for row in others], "ranks know the same"


def test_a_delay_that_computation_hides_is_in_the_total_and_not_exposed(ranks):
    rows = ranks(2).run(measured, "hidden")[0]
    assert added(rows, "total_s") == same(DELAY_S)
    assert added(rows, "exposed_s") == same(0)
    assert rows[3]["communication/hidden_share"] == same(1)
    assert rows[0]["communication/gradient_bytes"] == 4 * (8 * 8 + 8 + 9 * 40_000)


def test_a_slow_rank_is_skew_and_named_and_no_communication(ranks):
    rows = ranks(2).run(measured, "straggler")[0]
    assert added(rows, "straggler_wait_s") == same(DELAY_S)
    assert added(rows, "exposed_s") == same(0)
    assert added(rows, "total_s") == same(0)
    assert {row["communication/slowest_rank"] for row in rows[3::2]} == {1}


def timed_steps() -> dict[str, Any]:
    """Times of steps whose all-reduces are not, and are, delayed."""
    with Runtime.open() as runtime:
        model, loss, data, _ = problem_of(MLP(8, 5, hidden=[8]))
        before = copy.deepcopy(model.state_dict())
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=2, micro_batch_size=BATCH // 2)
        own = list(MicroBatchLoader(data, SampleOrder(len(data), SEED), plan, runtime.rank).micro_batches(0, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        times = []
        for delays in (never, always):
            with virtual_time(delays) as time:
                computing = model.register_forward_pre_hook(lambda *_, time=time: time.sleep(COMPUTING_S))
                run = made_run(runtime, model, loss, optimizer, plan, data, lr_at, 1)
                times.append(time_steps(runtime, run.model, run.gradient, optimizer, own, plan=plan, pairs=8))
                computing.remove()
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        return {"times": times, "changed": changed}


def test_a_step_with_delayed_communication_is_that_much_longer_than_one_without(ranks):
    first, second = ranks(2).run(timed_steps)
    plain, delayed = first["times"]
    assert first["times"] == second["times"]
    assert len(delayed.with_s) == len(delayed.without_s) == len(delayed.communication) == 8
    assert [*plain.with_s, *plain.without_s, *delayed.without_s] == same([COMPUTING_S] * 24)
    assert delayed.with_s == same([COMPUTING_S + DELAY_S] * 8)
    assert [one.exposed_s for one in delayed.communication] == same([DELAY_S] * 8)
    assert first["changed"] == [], "the weights go back after every step"


LINK = TransferFit(0.02, 1e-5, (0.02, 0.02), (1e-5, 1e-5))  # of 2 ranks: 10 ms a message, 10 us a byte over each link


def step_over_links() -> StepTimes:
    """A step in two parts on links of `LINK`; the first part has some time to hide behind."""
    with Runtime.open() as runtime:
        ranks = runtime.world_size
        message_s, s_per_byte = LINK.ring(2)

        def ring(step: int, bucket: Any) -> float:
            return 2 * (ranks - 1) * (message_s + bucket.buffer().nbytes / ranks * s_per_byte)

        with virtual_time(ring) as time:
            pause = Pause(time, lambda step: COMPUTING_S)
            model = nn.Sequential(nn.Linear(8, 8), pause, nn.Linear(8, 40_000))
            model, loss, data, _ = problem_of(model)
            plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=ranks, micro_batch_size=BATCH // ranks)
            own = list(MicroBatchLoader(data, SampleOrder(len(data), SEED), plan, runtime.rank).micro_batches(0, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            run = made_run(runtime, model, loss, optimizer, plan, data, lr_at, 1)
            return time_steps(runtime, run.model, run.gradient, optimizer, own, plan=plan, pairs=2)


def test_a_step_on_two_ranks_predicts_the_step_on_four(ranks):
    two, four = ranks(2).run(step_over_links)[0], ranks(4).run(step_over_links)[0]
    assert len(two.num_bytes) == 2, "two parts"
    assert two.lead_s == same([COMPUTING_S, 0.0])
    for steps, num_ranks in ((two, 2), (four, 4)):
        found = predict_step(
            LINK,
            measured_ranks=2,
            num_ranks=num_ranks,
            num_bytes=two.num_bytes,
            lead_s=two.lead_s,
            computing_s=two.without_s[0],
        )
        assert found.algorithm == "ring"
        assert found.step_s == same(steps.with_s[-1])
        assert found.exposed_s == same(steps.communication[-1].exposed_s)
    assert four.with_s[-1] > two.with_s[-1] + DELAY_S, "it is not the same on any number of ranks"


def all_reduces_of_a_known_line(latency_s: float, s_per_byte: float) -> Any:
    time = VirtualTime()

    def slow_sum(values: torch.Tensor) -> None:
        time.sleep(latency_s + values.numel() * values.element_size() * s_per_byte)

    with Runtime.open() as runtime, pytest.MonkeyPatch.context() as patched:
        patched.setattr(all_reduces, "time", time)
        gather = runtime.sum_in_place
        runtime.sum_in_place = lambda values: slow_sum(values) if values.dtype == torch.float32 else gather(values)
        return time_all_reduces(runtime, [1000, 400_000, 1_000_000, 4_000_000], repetitions=3).fit


def test_latency_and_bandwidth_of_slow_all_reduces_are_found(ranks):
    fit, other = ranks(2).run(all_reduces_of_a_known_line, 0.02, 1e-8)
    assert fit == other
    assert fit.latency_s == same(0.02)
    assert fit.bandwidth == pytest.approx(1e8, rel=1e-9)


def trained(every: int | None) -> dict[str, Any]:
    with Runtime.open() as runtime:
        rows = Rows()
        observers = [] if every is None else [CommunicationObserver(RowLog([rows], num_samples=50), every=every)]
        run = run_of(runtime, model_and_data("convnet"), observers=observers, steps=6, log_every=1)  # agrees alike
        train(run)
        tensors = [*run.module.state_dict().values(), *(one["momentum_buffer"] for one in run.optimizer.state.values())]
        return {
            "bits": [one.numpy().tobytes() for one in (*tensors, torch.get_rng_state())],
            "names": list(run.module.state_dict()),
            "measured": [row["step"] for row in rows.rows],
        }


def counted(every: int | None) -> tuple[Any, dict[str, Any]]:
    return count_collectives(trained, every)


def test_measuring_changes_no_bit_of_weights_buffers_or_random_numbers_and_other_steps_cost_nothing(ranks):
    without, with_it = (ranks(2).run(counted, every) for every in (None, 3))
    for (_, plain), (_, watched) in zip(without, with_it, strict=True):
        assert watched["bits"] == plain["bits"]
        assert watched["measured"] == [3, 6]
        assert any("running_mean" in name for name in plain["names"])
    assert without[0][0] == without[1][0]
    assert with_it[0][0] == with_it[1][0], "every rank makes the same collectives"
    added = with_it[0][0] - without[0][0]
    all_reduces = sum(count for (kind, _), count in added.items() if kind == "all_reduce")
    # The timelines of two steps, and after the first 8 sizes 7 times after a first time, and what these times were.
    assert all_reduces == 2 + 8 * 8 + 1


def verb(arguments: list[str], folder: str) -> tuple[int, str]:
    """Run a command on the ranks of this pool; the exit code and what was printed."""
    before = os.getcwd()
    os.chdir(folder)
    os.environ["COLUMNS"] = "200"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            return main(arguments), said.getvalue()
    finally:
        os.chdir(before)  # the next tests have these ranks, too


MODEL = ["model=mlp", "model.hidden=[8]", "batch.micro=8"]


def test_the_verb_shows_a_table_and_a_picture_and_keeps_the_times(ranks, tmp_path: Path):
    quick = ["measure.communication.pairs=10", "measure.communication.sizes=4", "measure.communication.repetitions=2"]
    command = ["measure", "communication", *MODEL, *quick, "run.dir=out"]
    (code, said), (_, silent) = ranks(2).run(verb, command, str(tmp_path))
    assert code == 0, said
    assert silent == ""
    assert "communication of 2 ranks, batch 32 in fp32" in said
    record = json.loads((tmp_path / "out/communication.json").read_text())["numbers"]
    for what, key in (("step with it", "step_with"), ("exposed", "exposed"), ("total", "total"), ("skew", "skew")):
        (line,) = [line for line in said.splitlines() if line.startswith(f" {what} ")]
        assert f" {1000 * record['medians'][key]['value']:.4g} ms " in line
    assert record["steps"]["num_bytes"] == [4 * (64 * 8 + 8 + 8 * 10 + 10)]
    assert len(record["steps"]["with_s"]) == 10
    assert record["all_reduces"]["num_bytes"] == [1024, 16384, 262144, 4194304]
    assert (tmp_path / "out/communication.png").stat().st_size > 1000


@pytest.mark.bad_input("compressed gradients on gloo")
def test_compressed_gradients_are_timed_as_they_are_sent(ranks, tmp_path: Path):
    quick = ["measure.communication.pairs=10", "measure.communication.sizes=4", "measure.communication.repetitions=1"]
    command = ["measure", "communication", *MODEL, *quick, "precision.gradient_compression=bf16", "run.dir=out"]
    (code, said), _ = ranks(2).run(verb, command, str(tmp_path))
    assert code == 0, said
    record = json.loads((tmp_path / "out/communication.json").read_text())["numbers"]
    assert record["steps"]["num_bytes"] == [2 * (64 * 8 + 8 + 8 * 10 + 10)]


def test_a_run_logs_communication_and_tells_it_at_the_end(ranks, tmp_path: Path):
    command = ["train", *MODEL, "length=4steps", "schedule.warmup=0samples", "observers.communication.every=2",
               "logger=none", "logger.plots=true", "observers.progress=false", "run.dir=out"]  # fmt: skip
    (code, said), _ = ranks(2).run(verb, command, str(tmp_path))
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "communication/exposed_s" in row] == [2, 4]
    assert "communication" in said
    assert "waiting for the slowest rank (medians of 2)" in said
    assert "out/plots/communication.png" in said
