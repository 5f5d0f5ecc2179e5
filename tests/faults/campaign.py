"""Kills of one run by real signals to real processes, one after the other, under launchers and ranks that change.

    campaign = Campaign(tmp_path / "run", overrides)
    campaign.strike(Way("torchrun", ranks=3, workers=2), "rank killed", after=5)
    campaign.finish(Way("accelerate", ranks=2))

Where in a step a strike comes is chance: it comes when a row tells of a step. What must come of it is not: the job ends
in time, nobody survives it, and what is on the disk is the uninterrupted run up to there.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largebatch.records.checkpoint import newest_valid
from largebatch.records.trackers import Row, read_metrics
from tests.faults.jobs import Ended, Job

ENDS_WITHIN_S = 90.0  # a rank that waits for a dead one is told at once; the rest is a crowded machine
SILENT_WITHIN_S = 10.0
# The columns that no two runs share: seconds, and what they are divided by; bytes of a process.
_TIMES = ("wall_s", "time/", "memory/", "stragglers/", "train/samples_per_s", "eval/seconds")


@dataclass(frozen=True)
class Way:
    """How a run is started.

    Attributes:
        launcher: as `Job` has it.
        ranks: how many processes train.
        workers: loading processes of each.
        background: whether checkpoints are written beside the steps.
    """

    launcher: str = "plain"
    ranks: int = 1
    workers: int = 0
    background: bool = False

    @property
    def overrides(self) -> tuple[str, str]:
        """What says so in the config."""
        return f"data.num_workers={self.workers}", f"observers.checkpoint.background={str(self.background).lower()}"


@dataclass(frozen=True)
class Hit:
    """One line of the table: what struck whom, and what came of it."""

    way: Way
    name: str
    step: int
    saved: int
    code: int
    seconds: float

    def __str__(self) -> str:
        way = self.way
        return (
            f"{way.launcher:12}{way.ranks:2} ranks {way.workers} workers  {'background' if way.background else '':11}"
            f"{self.name:24} at {self.step:4}  saved {self.saved:4}  exit {self.code:4}  {self.seconds:5.1f} s"
        )


def _kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the one before was its parent
            os.kill(pid, number)


def _launcher_killed_over_a_stopped_rank(job: Job, rank: int) -> None:
    _kill([job.rank_pid(rank)], signal.SIGSTOP)
    _kill([job.agent.pid])


@dataclass(frozen=True)
class Strike:
    """What hits a job.

    Attributes:
        act: does it, to the job and one of its ranks.
        saves: whether the run must have saved the step that it stopped after.
        needs: what a way must have for it, `launcher` or `workers`; empty: nothing.
        at_the_start: whether it may come before there are ranks.
    """

    act: Callable[[Job, int], None]
    saves: bool = False
    needs: str = ""
    at_the_start: bool = False

    def fits(self, way: Way) -> bool:
        """Whether a job that was started in this way has what it needs."""
        return {"": True, "launcher": way.launcher != "plain", "workers": way.workers > 0}[self.needs]


STRIKES = {
    "rank killed": Strike(lambda job, rank: _kill([job.rank_pid(rank)])),
    "launcher killed": Strike(lambda job, _: _kill([job.agent.pid]), needs="launcher", at_the_start=True),
    "launcher killed, rank stopped": Strike(_launcher_killed_over_a_stopped_rank, needs="launcher"),
    "all killed at once": Strike(lambda job, _: _kill(job.processes()), at_the_start=True),
    "loading process killed": Strike(lambda job, rank: _kill(job.loading_pids(rank)[:1]), needs="workers"),
    "SIGTERM to what was started": Strike(lambda job, _: _kill([job.agent.pid], signal.SIGTERM), saves=True),
    "SIGTERM to all": Strike(lambda job, _: os.killpg(job.agent.pid, signal.SIGTERM), saves=True),
    "Ctrl-C": Strike(lambda job, _: os.killpg(job.agent.pid, signal.SIGINT), saves=True),
    "SIGUSR1 to a rank": Strike(lambda job, rank: _kill([job.rank_pid(rank)], signal.SIGUSR1), saves=True),
}


@dataclass
class Campaign:
    """One run folder, and all that it is hit by.

    Attributes:
        folder: of the run.
        group: its overrides.
        hits: so far.
    """

    folder: Path
    group: Sequence[str]
    hits: list[Hit] = field(default_factory=list)

    def strike(self, way: Way, name: str, *, after: int, rank: int = 0, delay_s: float = 0.0) -> Ended:
        """Start, let it take `after` further steps and `delay_s` seconds, strike, and see that everybody has gone.

        With `after=0` it is hit `delay_s` seconds after it was started, wherever that is.
        """
        former = self.reached()
        with self._job(way) as job:
            if after:
                job.wait_until(lambda: self.reached() >= former + after, f"step {former + after}")
            time.sleep(delay_s)
            started = time.monotonic()
            STRIKES[name].act(job, rank)
            ended = job.end(within_s=ENDS_WITHIN_S)
            seconds = time.monotonic() - started
            job.wait_for_silence(SILENT_WITHIN_S)
        assert ended.code != 0, f"{name} came after the end of the run:\n{ended.output}"
        self.hits.append(Hit(way, name, self.reached(), self.saved(), ended.code, seconds))
        if STRIKES[name].saves:
            assert self.saved() == self.reached(), f"{name} loses steps:\n{ended.output}"
        return ended

    def finish(self, way: Way) -> None:
        """Go on to the end, unharmed."""
        with self._job(way) as job:
            ended = job.end()
        assert ended.code == 0, ended.output

    def reached(self) -> int:
        """The last step that the ledger tells of."""
        ledger = self.folder / "ledger.jsonl"
        return max((int(row["step"]) for row in read_metrics(ledger)), default=0) if ledger.exists() else 0

    def saved(self) -> int:
        """The step of the newest checkpoint, none of which may be damaged."""
        if not (self.folder / "checkpoints").exists():
            return 0
        checkpoint, rejected = newest_valid(self.folder / "checkpoints")
        assert rejected == []
        return 0 if checkpoint is None else checkpoint.step

    def _job(self, way: Way) -> Job:
        group = (*self.group, "resume=auto", *way.overrides)
        return Job(self.folder, launcher=way.launcher, ranks=way.ranks, group=group)


def draw_strikes(draw: random.Random, ways: Sequence[Way], count: int) -> Iterator[tuple[Way, str, dict[str, Any]]]:
    """So many strikes that fit their ways; one in six hits a run that is only starting."""
    for number in range(count):
        way, at_the_start = draw.choice(ways), number % 6 == 5
        names = [name for name, one in STRIKES.items() if one.fits(way) and one.at_the_start >= at_the_start]
        if at_the_start:
            when = {"after": 0, "delay_s": draw.uniform(0, 8)}
        else:
            when = {"after": draw.randrange(1, 12), "rank": draw.randrange(way.ranks), "delay_s": draw.uniform(0, 0.1)}
        yield way, draw.choice(names), when


def rows_without_times(folder: Path) -> list[Row]:
    """All of metrics.jsonl that two runs of one config share."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith(_TIMES)} for row in rows]
