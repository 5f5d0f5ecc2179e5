"""How a rank leaves its job."""

from __future__ import annotations

from tests.faults.forked_rank import join_and_leave
from tests.faults.forks import call_in_forks


def test_a_job_is_left_without_a_deadlock():
    """With a bare destroy_process_group, gloo's destructor waits for threads that wait for the GIL: seen within 100."""
    ended = call_in_forks(join_and_leave, 100, ranks=2)
    assert ended.codes == (0, 0), ended.output
    assert all("left 100 jobs" in said for said in ended.said)
