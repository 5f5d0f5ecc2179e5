"""Thirty faults, one after the other, into one run: what comes out is the run that nothing happened to."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from largebatch.records.trackers import read_metrics
from tests.faults.forks import train_in_forks
from tests.faults.oracle import assert_same_run
from tests.faults.planted import CHECKPOINT_POINTS, POINTS, Fault

NUM_FAULTS, NUM_STEPS = 30, 500
# Long enough that thirty faults do not stop it from going on; strict, so that any number of ranks has the same bits.
OPTIONS = (f"length={NUM_STEPS}steps", "batch.reduction=ordered", "batch.max_micro=null", "batch.micro=6")
ACTIONS = ("kill", "kill", "kill", "raise", "leave", "SIGTERM", "SIGTERM SIGINT")


def flip_a_bit(folder: Path, draw: random.Random) -> None:
    files = [path for path in folder.glob("checkpoints/step_*/*") if path.stat().st_size]
    if files:
        path = draw.choice(sorted(files))
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)


def cut_a_file(folder: Path, draw: random.Random) -> None:
    """Not the ledger: rows of steps before the checkpoint that a run goes on from are not made again."""
    files = [*sorted(folder.glob("checkpoints/step_*/*")), *sorted(folder.glob("metrics.jsonl"))]
    if files:
        path = draw.choice(files)
        with path.open("r+b") as file:
            file.truncate(draw.randrange(path.stat().st_size + 1))


def remove_a_file(folder: Path, draw: random.Random) -> None:
    if files := sorted(folder.glob("checkpoints/step_*/*")):
        draw.choice(files).unlink()


def leave_rubbish(folder: Path, draw: random.Random) -> None:
    (folder / "checkpoints" / f".tmp-{draw.randrange(200)}-{draw.randrange(2**32):08x}").mkdir(parents=True)


@pytest.mark.fault(
    60,
    "30 random faults, 60 kills of real jobs; every way out under every launcher",
    "ledger, rows and weights of the uninterrupted run; its exit code, no process left",
)
@pytest.mark.soak
def test_thirty_random_faults_end_with_the_weights_of_the_uninterrupted_run(tmp_path: Path):
    draw = random.Random(20)
    damages: list[Callable[[Path, random.Random], None]] = [flip_a_bit, cut_a_file, remove_a_file, leave_rubbish]
    assert train_in_forks(tmp_path / "golden", *OPTIONS).codes == (0,)
    folder, num_hit = tmp_path / "run", 0
    for _ in range(NUM_FAULTS):
        ranks = draw.choice((1, 1, 2, 3))
        position = reached(folder)
        fault = draw_fault(draw, position, ranks)
        ended = train_in_forks(folder, *OPTIONS, "resume=auto", ranks=ranks, fault=fault)
        assert all(code in (0, 1, 75, 130, -9) for code in ended.codes), f"{fault}:\n{ended.output}"
        num_hit += reached(folder) < NUM_STEPS
        if draw.random() < 0.5:
            draw.choice(damages)(folder, draw)
    assert num_hit == NUM_FAULTS, "it came to its end early"
    ended = train_in_forks(folder, *OPTIONS, "resume=auto")
    assert ended.codes == (0,), ended.output
    assert_same_run(folder, tmp_path / "golden", num_steps=NUM_STEPS)


def draw_fault(draw: random.Random, position: int, ranks: int) -> Fault:
    """One of the next steps: checkpoints are at each 3rd, evaluations at each 4th."""
    point = draw.choice(POINTS)
    every = 3 if point in CHECKPOINT_POINTS else 4 if point == "evaluation_mid" else 1
    step = -(-(position + draw.randrange(1, 10)) // every) * every
    rank = 0 if point in (*CHECKPOINT_POINTS, "log_mid") else draw.randrange(ranks)  # rank 0 writes
    return Fault(point, step, action=draw.choice(ACTIONS), rank=rank)


def reached(folder: Path) -> int:
    """The last step that a row tells of."""
    ledger = folder / "ledger.jsonl"
    return max((int(row["step"]) for row in read_metrics(ledger)), default=0) if ledger.exists() else 0
