"""Finds the checkpoint that a run continues from, on rank 0 for all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from largebatch.distributed.gather import gather_texts
from largebatch.distributed.runtime import Runtime
from largebatch.records.checkpoint import (
    Checkpoint,
    CheckpointError,
    Fits,
    chosen_by_rank0,
    find_valid,
    newest_valid,
)
from largebatch.records.run_folder import RunFolder


def find_checkpoint(
    resume: str, folder: RunFolder, runtime: Runtime, *, key: str = "resume", fits: Fits | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to continue from, and the reasons that newer ones were passed over.

    Rank 0 alone reads and verifies; elsewhere the tensors lie on the device "meta", see `chosen_by_rank0`. With `auto`
    and no checkpoint at all the result is (None, []). `key` is the name of `resume` in errors; `fits` refuses
    checkpoints that must not be used, see `Fits`.

    Raises:
        CheckpointError: on every rank, if there are checkpoints and none can be used, if `resume` names a folder
            without one, or if it does not fit the run of a rank.
    """
    if resume == "none":
        return None, []

    def choose() -> tuple[Checkpoint | None, list[str]]:
        if resume == "auto":  # checkpoints/best may hold the only usable checkpoint
            chosen, notes = newest_valid(folder.checkpoints, folder.checkpoints / "best", fits=fits)
        else:
            chosen, notes = find_valid(Path(resume), fits)
        if chosen is None and (notes or resume != "auto"):
            raise CheckpointError(_refusal(f"{key}={resume}", folder if resume == "auto" else None, notes))
        return chosen, notes

    checkpoint, notes = chosen_by_rank0(runtime, choose)
    if checkpoint is not None and fits is not None and runtime.world_size > 1:
        _require_fit_of_all(checkpoint, runtime, fits)
    return checkpoint, notes


def _require_fit_of_all(checkpoint: Checkpoint, runtime: Runtime, fits: Fits) -> None:
    """Names, shapes and settings on every rank but 0, which has checked; if one differs, all fail together."""
    failure = None
    try:
        if not runtime.is_main:
            fits(checkpoint)
    except CheckpointError as error:
        failure = str(error)
    failures = map(json.loads, gather_texts(runtime, json.dumps(failure)))
    if reasons := "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(failures) if one):
        raise CheckpointError(
            f"Rank 0 can go on from {checkpoint.path}, but not every rank can: {reasons} Start every rank with the "
            "same code and config."
        )


def _refusal(asked: str, folder: RunFolder | None, notes: Sequence[str]) -> str:
    if not notes:
        return f"{asked}: no valid checkpoint there. There is none at all."
    where = "there" if folder is None else f"in {folder.checkpoints}"
    reasons = "".join(f"\n  - {note}" for note in notes)
    return (
        f"{asked}: no valid checkpoint {where}. None of {len(notes)} can be used, and nothing was started or "
        f"changed:{reasons}\nMake one of them usable as its line says, or "
        + ("name another one." if folder is None else "start a new run in another run.dir.")
    )
