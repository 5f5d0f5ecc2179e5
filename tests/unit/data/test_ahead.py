"""Micro-batches that a thread prepares ahead are the same ones, and the thread never outlives their use."""

from __future__ import annotations

import gc
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import ArrayDataset, Augmentation, DataError, MicroBatchLoader, ahead
from largebatch.data.ahead import Ahead
from tests.unit.data.test_workers import NoisyImages, assert_equal, load

pytestmark = pytest.mark.quick

NUM_SAMPLES = 23
ORDER = SampleOrder(NUM_SAMPLES, seed=7)
PLAN = BatchPlan.solve(global_batch_size=5, world_size=1, max_micro_batch_size=2)
AUGMENT = Augmentation(seed=5, crop_padding=2, flip=True, cutout=3)
PIXELS = torch.randint(0, 256, (NUM_SAMPLES, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    gc.collect()  # of what the traceback of an expected error holds
    assert [one for one in threading.enumerate() if one.name == "largebatch-data"] == []


def images(**options: Any) -> ArrayDataset:
    return ArrayDataset(PIXELS, torch.arange(NUM_SAMPLES), **options)


def loader(dataset: Any = None, **options: Any) -> MicroBatchLoader:
    return MicroBatchLoader(dataset or images(), ORDER, PLAN, 0, augment=AUGMENT, **options)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_that_a_thread_prepares_are_bitwise_the_same(depth: int) -> None:
    assert_equal(list(loader(prefetch=depth).micro_batches(20, 6)), list(loader().micro_batches(20, 6)))


def test_a_thread_ahead_of_workers_gives_the_same_batches() -> None:
    assert_equal(load(1, prefetch=2, timeout_s=60), load(0))


def test_no_more_items_are_prepared_than_the_depth() -> None:
    taken = itertools.count()
    items = Ahead(iter(lambda: next(taken), None), 3)
    for number in range(5):
        assert next(items) == number
    deadline = time.monotonic() + 30
    while items._prepared.qsize() < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert items.close()
    assert next(taken) == 5 + 3


def test_a_bad_sample_is_named_after_the_good_ones_before_it() -> None:
    bad = int(ORDER.ids(0, 8)[6])
    batches = loader(images(bad={bad: "row 6 is torn"}), prefetch=2).micro_batches(0, 4)
    assert np.concatenate([next(batches).ids for _ in range(3)]).tolist() == ORDER.ids(0, 5).tolist()
    with pytest.raises(DataError, match=f"Sample {bad} cannot be loaded: DataError: row 6 is torn"):
        next(batches)


def test_a_bad_sample_is_skipped_as_without_a_thread() -> None:
    dataset = images(bad={3: "torn", 4: "torn"})
    ours, theirs = (list(loader(dataset, skips=True, prefetch=depth).micro_batches(0, 9)) for depth in (2, 0))
    assert_equal(ours, theirs)
    assert [one.skipped for one in ours] == [one.skipped for one in theirs]
    assert any(one.skipped for one in ours)


def test_a_thread_leaves_the_generators_of_the_process_alone() -> None:
    """Even where a bad sample has to be found, sample by sample: that is done where the batch is asked for."""
    before = torch.random.get_rng_state()
    batches = loader(images(bad={int(ORDER.ids(0, 8)[7]): "torn"}), prefetch=4, skips=True).micro_batches(0, 3)
    seen = [next(batches).ids.tolist()]
    drawn = [torch.rand(1).item()]
    for batch in batches:
        seen.append(batch.ids.tolist())
        drawn.append(torch.rand(1).item())
    torch.random.set_rng_state(before)
    assert drawn == [torch.rand(1).item() for _ in drawn]


def test_a_later_call_and_a_new_plan_end_the_thread_of_an_earlier_one() -> None:
    ours = loader(prefetch=2)
    earlier = ours.micro_batches(0, 100)
    next(earlier)
    smaller = BatchPlan.solve(global_batch_size=5, world_size=1, max_micro_batch_size=1)
    ours.replan(smaller)
    again = list(ours.micro_batches(5, 2))
    assert_equal(again, list(MicroBatchLoader(images(), ORDER, smaller, 0, augment=AUGMENT).micro_batches(5, 2)))
    with pytest.raises(RuntimeError, match="one iterator at a time"):
        next(earlier)


@pytest.mark.parametrize("end", ["close", "drop", "drop the iterator"])
def test_the_thread_ends_in_the_middle_of_a_run(end: str) -> None:
    ours = loader(prefetch=2)
    batches = ours.micro_batches(0, 10**9)
    next(batches)
    assert "largebatch-data" in [one.name for one in threading.enumerate()]
    if end == "close":
        ours.close()
        with pytest.raises(RuntimeError, match="one iterator at a time"):
            next(batches)
    elif end == "drop the iterator":
        del batches


def test_a_read_that_hangs_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_END_S", 0.05)
    goes_on = threading.Event()
    items = Ahead((goes_on.wait() for _ in range(1)), 1)
    assert not items.close()
    goes_on.set()
    items._thread.join(30)


def test_stop_signals_are_left_to_the_thread_that_waits() -> None:
    """The system hands one to any thread that does not block it, and the wait for a collective would go on."""
    items = Ahead((signal.pthread_sigmask(signal.SIG_BLOCK, []) for _ in range(1)), 1)
    assert next(items) >= {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    items.close()


def test_settings_that_a_thread_cannot_follow_are_refused() -> None:
    with pytest.raises(ValueError, match="draw from its random generators"):
        MicroBatchLoader(NoisyImages(), SampleOrder(11, seed=0), PLAN, 0, prefetch=2)
    with pytest.raises(ValueError, match="prefetch=-1"):
        loader(prefetch=-1)
