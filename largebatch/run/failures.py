"""Reports a failure during training with step, rank and samples; keeps tracebacks and lost ranks in files."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from largebatch.data import evaluation_batches
from largebatch.data.array import Int64Array
from largebatch.distributed.kernels import NO_DETERMINISTIC_KERNEL, lacks_deterministic_kernel
from largebatch.distributed.lost_ranks import LostRankError
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.out_of_memory import is_out_of_memory
from largebatch.records.checkpoint import CheckpointError
from largebatch.records.credentials import redacted
from largebatch.records.durable_files import write_whole
from largebatch.records.run_folder import RunFolder
from largebatch.run.config.reading import ConfigError
from largebatch.training.loop import Run
from largebatch.training.raised import RunFailedError, described, error_text, where_raised

_MOST_NAMED = 8
_MOST_SECONDS, _READ_AT_ONCE = 30.0, 64
_DUMPS = {"TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"}
_OWN_SENTENCES = (CheckpointError, ConfigError, LostRankError)


@contextlib.contextmanager
def naming_failures(run: Run, folder: RunFolder) -> Iterator[None]:
    """Around training: turn an exception into an error that names step, rank and samples.

    Args:
        run: the run.
        folder: gets `failure.rankN.txt` with the traceback from the failing rank N.

    Raises:
        RunFailedError: in place of any exception except errors of lost ranks, checkpoints and input.
    """
    try:
        yield
    except _OWN_SENTENCES:
        raise
    except Exception as error:
        raise RunFailedError(redacted(_report(run, error)) + _kept_traceback(run, folder, error)) from error


def keep_findings(runtime: Runtime, folder: RunFolder) -> None:
    """Have lost ranks noted in the run's folder: what their signs of life tell, and what each had last sent to NCCL."""
    lines: list[str] = []

    def record(line: str) -> None:
        lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {redacted(line)}\n")
        write_whole(folder.path / "lost_ranks.txt", "".join(lines))

    runtime.membership.heartbeat.record = record
    if runtime.device.type == "cuda" and not _DUMPS.intersection(os.environ):
        flights = folder.path / "flight_recorder"
        with contextlib.suppress(OSError):  # no space: torch then says that it cannot write
            flights.mkdir(exist_ok=True)
        os.environ["TORCH_FR_DUMP_TEMP_FILE"] = f"{flights.absolute()}/rank_"


def samples_without_numbers(dataset: Any, ids: Int64Array, *, seed: int) -> list[int]:
    """The samples among `ids` whose inputs or targets hold NaN or infinity.

    Loads them again, for half a minute at most. Samples that fail to load are left out.
    """
    bad: list[int] = []
    ends = time.monotonic() + _MOST_SECONDS
    for batch in evaluation_batches(dataset, ids, _READ_AT_ONCE, seed=seed, skips=True):
        parts = [*batch.inputs.values()] if isinstance(batch.inputs, dict) else [batch.inputs]
        for part in (*parts, batch.targets):
            rows = (~torch.isfinite(part)).reshape(len(part), -1).any(dim=1)
            bad += batch.ids[rows.numpy()].tolist()
        if time.monotonic() > ends:
            break
    return sorted(set(bad))


def _report(run: Run, error: Exception) -> str:
    parts = run.gradient.computing.parts
    where = f" {_named(parts)}" if parts else ""
    fact = error_text(error) if where_raised(error) else f"{type(error).__name__}: {error}".rstrip(".")
    remedy = "Lower batch.max_micro, or set batch.on_out_of_memory=lower. " if is_out_of_memory(error) else ""
    if lacks_deterministic_kernel(error):
        remedy = f"{NO_DETERMINISTIC_KERNEL} "
    return (
        f"step {run.steps.number} of {run.steps.num_steps} failed on rank {run.runtime.rank}{where}: {fact}. {remedy}"
    )


def _named(parts: Sequence[Any]) -> str:
    """The micro-batches that were being computed: one, or all of the step if they depend on each other."""
    ids = [sample for part in parts for sample in part.ids.tolist()]
    shown = ", ".join(map(str, ids[:_MOST_NAMED])) + (
        f" and {len(ids) - _MOST_NAMED} more" if ids[_MOST_NAMED:] else ""
    )
    one = parts[0]
    kind = "micro-batch" if len(parts) == 1 else f"{len(parts)} micro-batches"
    return f"in the {kind} of the samples {shown} ({described(one.inputs, one.targets, one.ids.tolist())})"


def _kept_traceback(run: Run, folder: RunFolder, error: Exception) -> str:
    path = folder.path / f"failure.rank{run.runtime.rank}.txt"
    text = redacted("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    try:
        write_whole(path, text)
    except OSError:  # a full disk may be the reason
        return f"The traceback:\n{text}"
    return f"The traceback is in {path}."
