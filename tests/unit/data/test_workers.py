"""Map-style data sets through worker processes: the number of workers changes nothing but speed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import Augmentation, DataError, MicroBatchLoader, evaluation_batches, worker_pool
from largebatch.data.workers import end_workers
from tests.faults import shown

NUM_SAMPLES = 11
ORDER = SampleOrder(NUM_SAMPLES, seed=2)
PLAN = BatchPlan.solve(global_batch_size=5, world_size=1, max_micro_batch_size=2)
AUGMENT = Augmentation(seed=9, crop_padding=1, flip=True)


@pytest.fixture(autouse=True)
def no_loading_process_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An error's traceback holds the iterator, and that its processes, until the garbage is collected."""
    start = worker_pool.DataLoader.__iter__

    def noted(loader: Any) -> Any:
        shown.note("this process", 1, workers=loader.num_workers)
        return start(loader)

    monkeypatch.setattr(worker_pool.DataLoader, "__iter__", noted)
    yield
    gc.collect()


class NoisyImages(Dataset[tuple[torch.Tensor, int]]):
    """Images that come out of all three global generators; `fault` runs first."""

    def __init__(self, fault: Callable[[int], None] | None = None) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.fault:
            self.fault(index)
        return torch.rand(1, 4, 4) + np.random.rand() + random.random(), index  # noqa: NPY002


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def load(num_workers: int, samples_seen: int = 0, num_steps: int = 4, **options: Any) -> list[Any]:
    loader = MicroBatchLoader(NoisyImages(), ORDER, PLAN, 0, augment=AUGMENT, num_workers=num_workers, **options)
    return list(loader.micro_batches(samples_seen, num_steps))


def assert_equal(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
        assert (a.ids.tolist(), a.epochs.tolist(), a.index, a.samples_seen) == (
            b.ids.tolist(),
            b.epochs.tolist(),
            b.index,
            b.samples_seen,
        )


@pytest.mark.fault(44)
def test_no_one_and_two_workers_give_bitwise_the_same_batches() -> None:
    alone = load(0)
    assert_equal(alone, load(1, timeout_s=60))
    assert_equal(alone, load(2))
    assert [batch.targets.tolist() for batch in alone] == [batch.ids.tolist() for batch in alone]
    assert np.concatenate([batch.ids for batch in alone]).tolist() == ORDER.ids(0, 20).tolist()


def test_workers_persist_over_calls_and_an_unfinished_call_leaves_no_trace() -> None:
    others = children()
    loader = MicroBatchLoader(NoisyImages(), ORDER, PLAN, 0, augment=AUGMENT, num_workers=2)
    unfinished = loader.micro_batches(0, 1000)
    next(unfinished)
    again = list(loader.micro_batches(5, 3))
    workers = children() - others
    assert len(workers) == 2
    assert_equal(again, load(0, samples_seen=5, num_steps=3))
    assert_equal(list(loader.micro_batches(0, 4)), load(0))
    assert workers <= children()
    with pytest.raises(RuntimeError, match="one iterator at a time"):
        next(unfinished)


def test_loading_leaves_the_generators_of_this_process_as_they_were() -> None:
    for num_workers in (0, 1):
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        load(num_workers, num_steps=1)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        assert random.getstate() == before[2]


def test_evaluation_through_workers_equals_evaluation_without() -> None:
    ids = np.array([3, 10, 0, 7, 5])
    assert_equal(
        list(evaluation_batches(NoisyImages(), ids, 2)), list(evaluation_batches(NoisyImages(), ids, 2, num_workers=2))
    )


BAD = int(ORDER.ids(0, 8)[6])


def break_down(index: int) -> None:
    if index == BAD:
        raise KeyError("no such file")


def die(index: int) -> None:
    if index == BAD:
        os.kill(os.getpid(), signal.SIGKILL)


def hang(index: int) -> None:
    if index == BAD:
        time.sleep(600)


@pytest.mark.fault(46, "bad sample", "named; or skipped and counted, alike on any ranks")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_sample_is_named_after_the_good_ones_before_it(num_workers: int) -> None:
    loader = MicroBatchLoader(NoisyImages(break_down), ORDER, PLAN, 0, num_workers=num_workers)
    batches = loader.micro_batches(0, 4)
    good = np.concatenate([next(batches).ids for _ in range(3)])  # micro-batches of 2, 2 and 1
    assert good.tolist() == ORDER.ids(0, 5).tolist()
    with pytest.raises(DataError, match=f"Sample {BAD} cannot be loaded: KeyError: 'no such file'") as caught:
        next(batches)
    loader.close()
    assert "break_down" in str(caught.value.__cause__) or num_workers == 0


@pytest.fixture
def _no_child_signal_handler() -> Iterator[None]:
    """As in a process whose first DataLoader is ours: another test may have left torch's handler behind."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.fault(45, "loading process killed or hangs", "error names the samples, bounded")
@pytest.mark.usefixtures("_no_child_signal_handler")
def test_a_killed_worker_is_an_error_that_names_the_samples_it_had_where_they_are_waited_for() -> None:
    batches = MicroBatchLoader(NoisyImages(die), ORDER, PLAN, 0, num_workers=1, timeout_s=2).micro_batches(0, 4)
    assert next(batches).ids.tolist() == ORDER.ids(0, 2).tolist()
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    with pytest.raises(DataError, match=rf"(?s)No data from the workers.*samples .*\b{BAD}\b.*use fewer workers"):
        list(batches)


def test_a_stop_signal_to_the_whole_group_leaves_the_workers_loading() -> None:
    others = children()
    loader = MicroBatchLoader(NoisyImages(), ORDER, PLAN, 0, augment=AUGMENT, num_workers=6, timeout_s=30)
    batches = loader.micro_batches(0, 4)
    first = [next(batches)]  # of the first worker: the last ones may not have come to life yet
    for pid in children() - others:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            os.kill(pid, number)
    assert_equal(first + list(batches), load(0))


def test_at_the_end_of_a_process_workers_end_though_one_sigterm_would_leave_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle of an epoch, as of a run that diverged: multiprocessing would wait for them."""
    others = set(multiprocessing.active_children())
    loader = MicroBatchLoader(NoisyImages(), ORDER, PLAN, 0, augment=AUGMENT, num_workers=2)
    batches = loader.micro_batches(0, 4)
    next(batches)
    workers = [one for one in multiprocessing.active_children() if one not in others]
    monkeypatch.setattr(multiprocessing, "active_children", lambda: workers)
    end_workers()
    for worker in workers:
        worker.join(timeout=30)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2


@pytest.mark.fault(45)
def test_a_worker_that_hangs_in_its_fork_is_killed_and_forked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    others, forks, begin = children(), multiprocessing.Value("i", 0), worker_pool._begin

    def hangs_once(alive: Any, worker: int) -> None:
        with forks.get_lock():
            forks.value += 1
            number = forks.value
        if number == 1:
            time.sleep(600)
        begin(alive, worker)

    monkeypatch.setattr(worker_pool, "_START_S", (0.2, 60.0))
    monkeypatch.setattr(worker_pool, "_begin", hangs_once)
    assert_equal(load(1), load(0))
    assert children() <= others
    monkeypatch.setattr(worker_pool, "_START_S", (0.0, 0.0))
    with pytest.raises(DataError, match=r"no sign of life within 0 s of their fork, 2 times"):
        load(1)


def test_closed_workers_are_gone_though_a_sample_hangs() -> None:
    others = children()
    loader = MicroBatchLoader(NoisyImages(hang), ORDER, PLAN, 0, num_workers=2, timeout_s=60)
    batches = loader.micro_batches(0, 100)
    next(batches)
    assert len(children() - others) == 2
    loader.close()
    assert children() <= others
    with pytest.raises(RuntimeError, match="one iterator at a time"):
        next(batches)


@pytest.mark.fault(45)
def test_a_hanging_worker_is_an_error_within_the_time_limit() -> None:
    loader = MicroBatchLoader(NoisyImages(hang), ORDER, PLAN, 0, num_workers=1, timeout_s=1)
    start = time.monotonic()
    with pytest.raises(DataError, match=f"(?s)timed out after 1 seconds.*samples .*{BAD}.*timeout_s=1"):
        list(loader.micro_batches(0, 4))
    loader.close()
    assert time.monotonic() - start < 10
