"""Runs whose items are made by loading processes: these end with their rank, and what they draw is not lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.faults.forks import train_in_forks
from tests.faults.oracle import assert_same_run
from tests.faults.planted import Fault
from tests.fork_server import forked_processes

# The group of digits made into another data set. Boundaries of micro-batches decide what dropout drops.
OWN = (
    "data.name=own", "data.limit=null", "data.augment.crop_padding=0", "data.num_features=8", "data.num_classes=2",
    "data.train._target_=tests.faults.own_data.NoisyPairs", "~data.train.split", "+data.train.count=120",
    "data.validation._target_=tests.faults.own_data.NoisyPairs", "~data.validation.split", "+data.validation.count=16",
    "model.dropout=0.5", "batch.max_micro=null", "batch.micro=6",
)  # fmt: skip


@pytest.mark.fault(44, "random draws after a resume", "bitwise, any number of workers")
def test_random_items_and_dropout_are_bitwise_the_same_after_kills_with_any_number_of_workers(tmp_path: Path):
    ended = train_in_forks(tmp_path / "golden", *OWN)
    assert ended.codes == (0,), ended.output
    folder = tmp_path / "run"
    for workers, step in ((2, 5), (0, 9), (1, 13)):
        fault = Fault("after_backward", step, micro_batch=1)
        ended = train_in_forks(folder, *OWN, "resume=auto", f"data.num_workers={workers}", fault=fault)
        assert ended.codes == (-signal.SIGKILL,), ended.output
    assert train_in_forks(folder, *OWN, "resume=auto", "data.num_workers=2").codes == (0,)
    assert_same_run(folder, tmp_path / "golden")


@pytest.mark.fault(13)
def test_loading_processes_end_with_a_rank_that_is_killed(golden: Path, tmp_path: Path):
    """The golden run is only to have the fork server there, which stays."""
    before = forked_processes()
    ended = train_in_forks(tmp_path, *OWN, "data.num_workers=2", fault=Fault("after_backward", 5))
    assert ended.codes == (-signal.SIGKILL,), ended.output
    end = time.monotonic() + 4  # by themselves torch's look for their parent every 5 s, and never inside a sample
    while forked_processes() - before and time.monotonic() < end:
        time.sleep(0.1)
    assert forked_processes() - before == set()
