"""Two nodes with a network between them, and the link cut inside a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forks import train_in_forks
from tests.faults.nodes import Node, linked_nodes, why_not
from tests.faults.oracle import assert_same_run
from tests.faults.planted import Fault
from tests.fork_server import forked_processes

FAILED = 1
LIMIT_S = 3  # of a collective
REST_S = 5 + 8  # a roll call that nobody answers; to start and to leave on a crowded machine
MISSING = why_not()

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    with linked_nodes() as pair:
        yield pair


@pytest.mark.fault(14)
def test_two_nodes_train_the_run_of_one_bit_for_bit(nodes: tuple[Node, Node], golden_of_two: Path, tmp_path: Path):
    ended = train_in_forks(tmp_path, ranks=2, nodes=nodes)
    assert ended.codes == (0, 0), ended.output
    assert_same_run(tmp_path, golden_of_two)


@pytest.mark.fault(14)
def test_a_link_cut_inside_a_step_is_told_on_both_sides_in_time_and_the_job_goes_on_bit_for_bit(
    nodes: tuple[Node, Node], golden_of_two: Path, tmp_path: Path
):
    before, started = forked_processes(), time.monotonic()
    fault = Fault("after_forward", 7, action="cut", rank=1)
    ended = train_in_forks(tmp_path, ranks=2, fault=fault, timeout_s=LIMIT_S, nodes=nodes)
    assert time.monotonic() - started < LIMIT_S + REST_S
    assert ended.codes == (FAILED, FAILED), ended.output
    assert "LostRankError: Rank 1 left the run or does not answer: rank 0 waited in step 7 " in ended.said[0]
    assert "LostRankError: Rank 0 or the network to it is gone: rank 1 waited in step 7" in ended.said[1]
    assert f"did not answer at {nodes[0].address}:29500 on rank 0's host" in ended.said[1]
    assert forked_processes() <= before
    nodes[1].plug_in()
    ended = train_in_forks(tmp_path, "resume=auto", ranks=2, timeout_s=LIMIT_S, nodes=nodes)
    assert ended.codes == (0, 0), ended.output
    assert_same_run(tmp_path, golden_of_two)
