"""What the watcher makes of the signs of life; jobs that really lose ranks are in tests/faults."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore

from largebatch.distributed.watcher import NO_STEP, Sign, Watcher, deputy

LIMIT_S, SILENCE_S = 100.0, 50.0
WAIT = "training/step_sums.py:80 in result"


class Job:
    """The signs of some ranks, at times that a test says."""

    def __init__(self, ranks: int, *, at: int = 0) -> None:
        self.store, self.now, self.counts = HashStore(), 0.0, [0] * ranks
        self.watcher = Watcher(at, ranks, every_s=5.0, clock=lambda: self.now)
        self.lost: str | None = None

    def sign(self, rank: int, step: int, stood_s: float = 0.0, place: str = WAIT) -> None:
        self.counts[rank] += 1
        self.store.set(f"sign/{rank}", str(Sign(self.counts[rank], step, stood_s, f"gpu{rank}", place)))

    def look(self, after_s: float = 5.0) -> str | None:
        self.now += after_s
        findings = self.watcher.look(self.store, limit_s=LIMIT_S, silence_s=SILENCE_S)
        self.lost = findings.get("lost", self.lost)
        return findings.get("noticed")


def test_a_silent_rank_is_named_once_with_its_last_step_and_called_back_when_it_speaks():
    job, told = Job(3), []
    for beat in range(10):
        for rank in (0, 1, 2) if beat < 2 else (0, 2):
            job.sign(rank, step=7)
        told.append(job.look())
    (text,) = [one for one in told if one is not None]
    assert text.startswith(
        "rank 1 on gpu1 has given no sign of life for 35 s, last in step 7; the others are in step 7."
    )
    assert job.lost is None, "it may come back"
    for _ in range(4):
        for rank in (0, 2):
            job.sign(rank, step=7)
        assert job.look() is None
    assert str(job.lost).startswith("rank 1 on gpu1 has given no sign of life for 55 s")
    job.sign(1, step=7)
    assert job.look() == job.lost == "", "the finding no longer holds"


def test_the_rank_of_an_older_step_is_the_one_that_the_others_wait_for():
    job, told = Job(4), []
    for beat in range(14):
        for rank in range(4):
            job.sign(
                rank, step=6 if rank == 2 else 7, stood_s=5.0 * beat, place="own.py:3 in forward" if rank == 2 else WAIT
            )
        told.append(job.look())
    (text,) = [one for one in told if one is not None]
    assert text.startswith(
        "step 6 has not ended for 50 s. The job waits for rank 2: rank 2 on gpu2 at own.py:3 in forward."
    )
    assert f"The others wait at {WAIT}." in text


def test_ranks_that_all_wait_at_one_place_blame_the_network_or_their_order():
    job, told = Job(2), []
    for beat in range(12):
        for rank in range(2):
            job.sign(rank, step=7, stood_s=5.0 * beat)
        told.append(job.look())
    (text,) = [one for one in told if one is not None]
    assert text.startswith(
        f"no rank has finished step 7 for 50 s, and all 2 wait at {WAIT}: a link of the network hangs"
    )


@pytest.mark.parametrize(("step", "stood_s"), [(NO_STEP, 90.0), (7, 1.0)], ids=["outside of training", "busy"])
def test_ranks_that_work_are_not_said_to_stand(step: int, stood_s: float):
    """An evaluation, or a step that takes long: their threads move on."""
    job = Job(2)
    for _ in range(30):
        for rank in range(2):
            job.sign(rank, step, stood_s)
        assert job.look() is None


def test_a_rank_that_has_left_is_not_lost():
    job = Job(2)
    job.sign(1, NO_STEP, place="left")
    for _ in range(12):
        job.sign(0, NO_STEP)
        assert job.look() is None


def test_the_deputy_reads_rank_0_alone_until_it_falls_silent_and_then_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert deputy(4) == 2, "on another node"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert deputy(4) == 1
    job, told = Job(4, at=1), []
    for _ in range(8):
        job.sign(1, step=7)
        told.append(job.look())
    (text,) = [one for one in told if one is not None]
    assert text.startswith("rank 0 on an unknown host has given no sign of life")
    assert Job(4, at=3).look() is None, "others do not watch"
