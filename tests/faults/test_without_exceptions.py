"""Ranks that are lost where no collective raises, as under NCCL: they are named, and every process ends."""

from __future__ import annotations

import re
import signal
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.faults.forks import train_in_forks
from tests.faults.planted import Fault

FAILED = 1
LIMIT_S = 5.0  # of a collective
SERVERS: list[TCPStore] = []
HOST = socket.gethostname()


@pytest.fixture
def port() -> int:
    """Of a store, as that of torchrun's agent; it lasts as long as this process."""
    server = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=60), wait_for_workers=False)
    SERVERS.append(server)
    return server.port


@pytest.mark.fault(4)
def test_a_rank_that_raises_says_why_at_once_and_ends_the_other_that_waits_without_an_error(port: int, tmp_path: Path):
    fault = Fault("after_forward", 7, action="raise", rank=1)
    ended = train_in_forks(tmp_path, ranks=2, fault=fault, port=port)
    assert ended.codes == (FAILED, FAILED), ended.output
    assert "PlantedError: planted: after_forward of step 7" in ended.said[1]
    assert "the group is being closed" not in ended.output
    assert "largebatch: rank 0 ends here, in step 7 at " in ended.said[0]
    assert f"rank 1 on {HOST} failed in step 7: RunFailedError: step 7 of 16 failed on rank 1" in ended.said[0]


@pytest.mark.fault(14)
def test_a_stopped_rank_is_named_before_its_collective_fails_and_the_other_ends_after_it(port: int, tmp_path: Path):
    fault = Fault("after_forward", 7, action="SIGSTOP", rank=1)
    ended = train_in_forks(tmp_path, ranks=2, fault=fault, port=port, timeout_s=LIMIT_S, killed_at_last=1)
    assert ended.codes == (FAILED, -signal.SIGKILL), ended.output
    named, _, end = ended.said[0].partition("largebatch: rank 0 ends here, in step 7 at ")
    assert f"largebatch: rank 1 on {HOST} has given no sign of life for " in named
    assert re.search(r", last (in step \d|outside of the steps); the others are in step 7\.", named), (
        "a sign is not a step"
    )
    assert f"rank 1 on {HOST} has given no sign of life" in end
    assert "rank 1 on" in (tmp_path / "lost_ranks.txt").read_text()


@pytest.mark.fault(14)
def test_ranks_that_wait_for_a_silent_one_end_before_their_collective_does(port: int, tmp_path: Path):
    """A node that is lost costs the others `launcher.silence_timeout_s`."""
    fault, silence = Fault("after_forward", 7, action="SIGSTOP", rank=1), "launcher.silence_timeout_s=3"
    ended = train_in_forks(tmp_path, silence, ranks=3, fault=fault, port=port, killed_at_last=1)
    assert ended.codes == (FAILED, -signal.SIGKILL, FAILED), ended.output
    for rank in (0, 2):
        assert f"largebatch: rank {rank} ends here, in step 7 at " in ended.said[rank]
        assert f": rank 1 on {HOST} has given no sign of life for 3 s" in ended.said[rank]


@pytest.mark.fault(14)
def test_a_rank_that_hangs_in_a_step_is_named_with_the_line_where_it_is(port: int, tmp_path: Path):
    """It gives signs of life, and both ranks are in the same step."""
    fault = Fault("after_forward", 7, action="sleep", rank=1)
    ended = train_in_forks(tmp_path, ranks=2, fault=fault, port=port, timeout_s=LIMIT_S)
    assert ended.codes == (FAILED, FAILED), ended.output
    assert "largebatch: step 7 has not ended for " in ended.said[0]
    assert f"The job waits for rank 1: rank 1 on {HOST} at faults/planted.py:" in ended.said[0]
    assert " in strike. The others wait at " in ended.said[0]
