"""A run that is killed anywhere and started again is the run that nothing happened to, to the last bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from largebatch.records.checkpoint import newest_valid
from tests.faults.forks import train_in_forks
from tests.faults.oracle import assert_same_run
from tests.faults.planted import CHECKPOINT_POINTS, STEP_POINTS, Fault

KILLED = (-signal.SIGKILL,)
# Checkpoints at 3, 6, 9, 12, 15 and 16. Steps 5, 10 and 15 end an epoch; 1 to 3 are before the first checkpoint.
SAMPLED_STEPS = (1, 10, 16)


def killed(folder: Path, fault: Fault, *overrides: str) -> None:
    ended = train_in_forks(folder, "resume=auto", *overrides, fault=fault)
    assert ended.codes == KILLED, f"{fault} was never reached:\n{ended.output}"


def resumed(folder: Path, *overrides: str) -> str:
    ended = train_in_forks(folder, "resume=auto", *overrides)
    assert ended.codes == (0,), ended.output
    return ended.output


def last_saved(folder: Path) -> int:
    checkpoint, _ = newest_valid(folder / "checkpoints")
    return 0 if checkpoint is None else checkpoint.step


@pytest.mark.fault(1, "rank killed inside a step", "named; resume is bitwise the same run")
@pytest.mark.parametrize("point", STEP_POINTS)
def test_a_run_killed_inside_a_step_goes_on_bit_for_bit(point: str, golden: Path, tmp_path: Path):
    """In three steps one after the other, each time gone on with: what one leaves behind is there in the end."""
    for step in SAMPLED_STEPS:
        killed(tmp_path, Fault(point, step))
        assert last_saved(tmp_path) == (step - 1) // 3 * 3
    resumed(tmp_path)
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(43, "killed inside evaluation or accumulation", "the step is taken again as a whole")
def test_a_step_killed_inside_accumulation_is_taken_again_as_a_whole(golden: Path, tmp_path: Path):
    """Of three micro-batches; the first one's points are those of the test above."""
    for point, micro_batch in (("after_backward", 1), ("after_forward", 2), ("after_backward", 2)):
        killed(tmp_path, Fault(point, 7, micro_batch=micro_batch))
    resumed(tmp_path)
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(43)
def test_a_run_killed_while_it_evaluates_goes_on_bit_for_bit(golden: Path, tmp_path: Path):
    for step in (4, 8, 16):
        killed(tmp_path, Fault("evaluation_mid", step))
    resumed(tmp_path)
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(3, "killed inside a checkpoint", "whole or not at all; leftovers removed")
@pytest.mark.parametrize(
    ("background", "every", "steps"),
    [
        ("false", 3, (3, 16)),
        ("true", 8, (16,)),  # so rarely that none is left out because the one before is still being written
    ],
)
@pytest.mark.parametrize("point", CHECKPOINT_POINTS)
def test_a_checkpoint_that_is_killed_is_there_as_a_whole_or_not_at_all(
    point: str, background: str, every: int, steps: tuple[int, ...], golden: Path, tmp_path: Path
):
    how = f"observers.checkpoint.background={background}", f"observers.checkpoint.every={every}steps"
    for step in steps:
        killed(tmp_path, Fault(point, step), *how)
        assert last_saved(tmp_path) == (step if point == "checkpoint_after_rename" else (step - 1) // every * every)
    resumed(tmp_path)
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(2, "killed twice in one epoch", "as 1")
def test_a_run_killed_again_and_again_comes_to_its_end(golden: Path, tmp_path: Path):
    """Two or three steps further each time, twice in an epoch, now in a step and now in a checkpoint.

    Each checkpoint but the last is resumed from, and each but the first written by a run that was resumed.
    """
    for point, step in (
        ("after_update", 4), ("checkpoint_mid_file", 6), ("log_mid", 8), ("before_update", 10),
        ("checkpoint_before_manifest", 12), ("after_backward", 14), ("after_update", 16),
    ):  # fmt: skip
        killed(tmp_path, Fault(point, step))
    resumed(tmp_path)
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(59, "killed before the first checkpoint", "from scratch, says so")
def test_a_run_killed_before_its_first_checkpoint_starts_from_scratch_and_says_so(golden: Path, tmp_path: Path):
    killed(tmp_path, Fault("after_update", 2))
    assert "no checkpoint yet, starting from scratch" in resumed(tmp_path)
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(42, "resumed at an epoch's end, in the last step, after it", "correct; already finished")
def test_a_run_goes_on_at_the_boundary_of_an_epoch(golden: Path, tmp_path: Path):
    """An epoch is 5 steps, and a checkpoint stands at the end of each."""
    for step in (5, 6, 10, 11):
        killed(tmp_path, Fault("before_step", step + 1), "observers.checkpoint.every=1ep")
        assert last_saved(tmp_path) == step // 5 * 5
    resumed(tmp_path, "observers.checkpoint.every=1ep")
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(42)
def test_a_run_killed_in_its_last_step_takes_it_again(golden: Path, tmp_path: Path):
    killed(tmp_path, Fault("checkpoint_before_rename", 16))
    assert last_saved(tmp_path) == 15
    resumed(tmp_path)
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(42)
def test_a_run_that_has_ended_is_already_finished(golden: Path, tmp_path: Path):
    resumed(tmp_path)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "checkpoints").rglob("*"))
    assert "already finished: 16 steps" in resumed(tmp_path)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "checkpoints").rglob("*")) == before
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(28)
def test_a_checkpoint_folder_that_vanishes_comes_back_with_the_next_checkpoint(golden: Path, tmp_path: Path):
    """Removed after step 7 by somebody else; the run neither ends nor waits."""
    ended = train_in_forks(tmp_path, fault=Fault("after_update", 7, action="vanish", folder=tmp_path / "checkpoints"))
    assert ended.codes == (0,), ended.output
    assert_same_run(tmp_path, golden)


@pytest.mark.fault(32, "stale pointer to the latest", "ignored")
def test_junk_beside_the_checkpoints_is_ignored(golden: Path, tmp_path: Path):
    """Pointers, whatever they point to, and directories that another program named alike."""
    killed(tmp_path, Fault("before_step", 8))
    folder = tmp_path / "checkpoints"
    (folder / "latest").write_text("step_99999999")
    (folder / "step_00000099").mkdir()
    (folder / "step_00000100").symlink_to(tmp_path / "nowhere")
    (folder / "best").write_bytes(b"\0")
    output = resumed(tmp_path)
    assert "step_00000006" in output
    assert "step_00000099" in output, "what looked like a checkpoint is told"
    assert (tmp_path / "ledger.jsonl").read_text() == (golden / "ledger.jsonl").read_text()
