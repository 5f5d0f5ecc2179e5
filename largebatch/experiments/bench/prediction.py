"""`largebatch bench prediction`: real runs predict held-out ones; how far off they are, how often inside."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.diagnostics.predictions.grades import Grade, calibrations
from largebatch.experiments.bench.settings import at_least, setting, some_of
from largebatch.records.durable_files import write_record
from largebatch.records.graded_runs import LABELS, grades_in

_OWN = "largebatch.experiments.bench.planted_delays"
COMMON = ("batch.max_micro=64", "length=90steps", "schedule.warmup=0ep", "observers.metrics.every=5",
          "observers.evaluation.every=null", "observers.progress=false", "logger=none")  # fmt: skip
TASKS = {
    "mlp": ("data=digits", "model=mlp"),
    "convnet": ("data=digits", "model=convnet", "model.width=8"),
    "gpt": ("data=drawn_tokens", "data.context_length=32", "data.vocab_size=64", "data.train.num_samples=4096",
            "data.validation.num_samples=64", "model.num_layers=2", "model.num_heads=2", "model.width=32",
            "optimizer=adamw"),
}  # fmt: skip
FITTED = (16, 64, 256, 16, 64, 256)
HELD_OUT = (24, 48, 96, 128, 192)
DELAY_S, LOADING_S = 0.05, 0.001
_DELAYED = (f"+observers.delayed._target_={_OWN}.DelayedAllReduce", f"+observers.delayed.seconds={DELAY_S}")
_LOADED = ("data=by_target", f"data.train._target_={_OWN}.SlowlyLoaded", f"+data.train.seconds={LOADING_S}",
           f"data.validation._target_={_OWN}.SlowlyLoaded", "+data.num_features=64", "+data.num_classes=10",
           "model=mlp")  # fmt: skip
_LEVELS = {"step_time": 0.10, "epoch_time": 0.10, "memory": 0.05}  # largest error that a prediction may have
_SHARE = (0.90, 0.98)  # of intervals that hold


@dataclass(frozen=True)
class Settings:
    """The runs."""

    folder: str = setting(
        "runs/bench-prediction", lambda key, text: text, "DIR",
        "where the runs lie; finished ones are not repeated (default: runs/bench-prediction)",
    )  # fmt: skip
    tasks: tuple[str, ...] = setting(
        tuple(TASKS), some_of(tuple(TASKS)), "NAME,...", f"some of {', '.join(TASKS)} (default: all)"
    )
    ranks: tuple[str, ...] = setting(("1", "2"), some_of(("1", "2")), "N,...", "processes, 1 or 2 (default: 1,2)")
    held_out: int = setting(
        len(HELD_OUT), at_least(1), "N", f"batch sizes of {HELD_OUT} that are predicted (default: all)"
    )
    threads: int = setting(1, at_least(1), "N", "threads of each process (default: 1)")


@dataclass(frozen=True)
class Job:
    """A run: its cell, whether it is predicted from the others of the cell, its batch and its settings."""

    cell: str
    name: str
    batch: int
    ranks: int
    overrides: tuple[str, ...]
    is_held_out: bool

    def folder(self, root: Path) -> Path:
        """Of the run. Fitted runs lie beside each other, held-out ones beside the folder of those."""
        return root / self.cell / ("held-out" if self.is_held_out else "fitted") / self.name

    def command(self, root: Path) -> list[str]:
        """As somebody would start it."""
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        settings = [*COMMON, *self.overrides, f"batch.total={self.batch}", f"run.dir={self.folder(root)}"]
        settings.append(f"run.predict_from={root / self.cell / 'fitted'}")
        return [sys.executable, *(start if self.ranks > 1 else []), "-m", "largebatch", "train", *settings]


def jobs(settings: Settings) -> list[Job]:
    """All runs, in an order in which a machine that slows down slows all cells."""
    cells = [(f"{task}-{ranks}", int(ranks), TASKS[task]) for task in settings.tasks for ranks in settings.ranks]
    if "2" in settings.ranks:
        cells.append(("delayed-2", 2, (*TASKS["mlp"], *_DELAYED)))
    cells.append(("slowly-loaded-1", 1, _LOADED))
    fitted = [
        Job(cell, f"{number}-batch-{batch}", batch, ranks, (*overrides, f"seed={number}"), is_held_out=False)
        for number, batch in enumerate(FITTED)
        for cell, ranks, overrides in cells
        if number < 4 or cell in {f"{task}-{ranks}" for task in TASKS}
    ]
    held_out = [
        Job(cell, f"batch-{batch}", batch, ranks, (*overrides, "seed=100"), is_held_out=True)
        for batch in HELD_OUT[: settings.held_out]
        for cell, ranks, overrides in cells
        if batch == HELD_OUT[0] or cell in {f"{task}-{ranks}" for task in TASKS}
    ]
    return [*fitted, *held_out]


def measure(settings: Settings) -> bool:
    """Train what is missing, print the table as markdown, and write prediction.json; False if a run failed."""
    root, planned, started = Path(settings.folder).absolute(), jobs(settings), time.monotonic()
    for cell in {job.cell for job in planned}:
        (root / cell / "fitted").mkdir(parents=True, exist_ok=True)
    for number, job in enumerate(planned, start=1):
        if _summary(job.folder(root)).get("status") == "finished":
            continue
        shutil.rmtree(job.folder(root), ignore_errors=True)  # of a bench that was stopped
        if not _train(job, root, settings.threads):
            return False
        print(f"{number} of {len(planned)} runs, {time.monotonic() - started:.0f} s", file=sys.stderr)
    record = record_of([(job, _summary(job.folder(root))) for job in planned])
    write_record(root / "prediction.json", record)
    print("\n".join(_markdown(record)))
    print(root / "prediction.json")
    return True


def _train(job: Job, root: Path, threads: int) -> bool:
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(job.command(root), env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"largebatch bench prediction: {' '.join(job.command(root))}\n{done.stderr[-3000:]}", file=sys.stderr)
    return done.returncode == 0


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def record_of(found: Sequence[tuple[Job, dict[str, Any]]]) -> dict[str, Any]:
    """What held-out runs were predicted and took, and the planted delays as predicted and measured."""
    rows = [
        {"cell": job.cell, "batch": job.batch, "ranks": job.ranks, **_plain(grade)}
        for job, summary in found
        if job.is_held_out
        for grade in grades_in(summary)
    ]
    missing = [f"{job.cell}, batch {job.batch}" for job, summary in found if job.is_held_out and not grades_in(summary)]
    return {"held_out": rows, "not_predicted": missing, "repeats": _repeats(found), "delays": list(_delays(found))}


def _repeats(found: Sequence[tuple[Job, dict[str, Any]]]) -> list[float]:
    """How far apart the times of a step of two fitted runs of one batch size are: no prediction is better than that."""
    times: dict[tuple[str, int], list[float]] = {}
    for job, summary in found:
        if not job.is_held_out:
            times.setdefault((job.cell, job.batch), []).append(summary["measured"]["step_time"])
    return [max(one) / min(one) - 1 for one in times.values() if len(one) > 1]


def _plain(grade: Grade) -> dict[str, Any]:
    return {**vars(grade), "inside": grade.is_inside, "error": abs(grade.ratio - 1)}


def _delays(found: Sequence[tuple[Job, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Exposed communication of delayed runs less that of the same runs without; the data wait of slow samples."""
    key = "exposed_communication"
    by_cell: dict[str, list[tuple[Job, dict[str, Any]]]] = {}
    for job, summary in found:
        by_cell.setdefault(job.cell, []).append((job, summary))
    plain, delayed = by_cell.get("mlp-2", []), by_cell.get("delayed-2", [])
    if plain and delayed:
        measured = [statistics.median(one["measured"][key] for _, one in cell) for cell in (delayed, plain)]
        predicted = [
            [grade.value for job, one in cell if job.is_held_out for grade in grades_in(one) if grade.quantity == key]
            for cell in (delayed, plain)
        ]
        yield _delay("all-reduce, measured", DELAY_S, measured[0] - measured[1])
        if all(predicted):
            value = statistics.median(predicted[0]) - statistics.median(predicted[1])
            yield _delay("all-reduce, predicted", DELAY_S, value)
    for job, one in by_cell.get("slowly-loaded-1", []):
        if job.is_held_out:
            yield _delay(f"loading of {job.batch} samples", job.batch * LOADING_S, one["measured"]["data_wait"])


def _delay(what: str, planted: float, found: float) -> dict[str, Any]:
    return {"what": what, "planted_s": planted, "found_s": found, "error": abs(found / planted - 1)}


def _markdown(record: dict[str, Any]) -> Iterator[str]:
    """The tables, with what each was to reach."""
    rows = record["held_out"]
    yield "| quantity | held-out runs | median error | largest error | asked | within | intervals that held | 95 % |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in calibrations([_grade(row) for row in rows]):
        errors = [row["error"] for row in rows if row["quantity"] == one.quantity]
        level = _LEVELS.get(one.quantity)
        asked = "" if level is None else f"{level:.0%}"
        within = "" if level is None else f"{sum(error <= level for error in errors)} of {len(errors)}"
        yield (
            f"| {LABELS[one.quantity][0]} | {one.number} | {one.median_error:.1%} | {max(errors):.1%} | "
            f"{asked} | {within} | "
            f"{one.inside} of {one.number} ({_SHARE[0]:.0%} to {_SHARE[1]:.0%} asked) | "
            f"{one.share.low:.0%} to {one.share.high:.0%} |"
        )
    yield ""
    yield "| cell | quantity | median error | intervals that held |"
    yield "|---|---|---|---|"
    for cell, key in dict.fromkeys((row["cell"], row["quantity"]) for row in rows):
        (one,) = calibrations([_grade(row) for row in rows if (row["cell"], row["quantity"]) == (cell, key)])
        yield f"| {cell} | {LABELS[key][0]} | {one.median_error:.1%} | {one.inside} of {one.number} |"
    yield ""
    yield "| planted delay | planted | found | error (10 % asked) |"
    yield "|---|---|---|---|"
    for one in record["delays"]:
        planted, measured = (f"{1e3 * one[key]:.1f} ms" for key in ("planted_s", "found_s"))
        yield f"| {one['what']} | {planted} | {measured} | {one['error']:.1%} |"
    if repeats := record["repeats"]:
        yield (
            f"\nTwo runs of one batch size differ in the time of a step by {statistics.median(repeats):.1%} (median of "
            f"{len(repeats)} pairs), at most by {max(repeats):.1%}."
        )
    if record["not_predicted"]:
        yield f"\nNot predicted: {'; '.join(record['not_predicted'])}."


def _grade(row: dict[str, Any]) -> Grade:
    return Grade(*(row[name] for name in ("quantity", "value", "low", "high", "measured", "widened_by")))
