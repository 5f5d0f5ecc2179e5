"""`largebatch bench rows`: memory and time of the commands that read the records of a long run, on this machine."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.experiments.bench.settings import at_least, setting
from largebatch.records.durable_files import write_record, write_whole

_EVALUATIONS = 100
_CONFIG = "seed: 0\nmodel: {_target_: model}\noptimizer: {_target_: SGD}\ndata: {name: made}\n"
_CALL = f"import sys; from {__name__} import *; globals()[sys.argv[1]](*sys.argv[2:])"


@dataclass(frozen=True)
class Settings:
    """How long the runs are."""

    rows: int = setting(
        10**6, at_least(_EVALUATIONS), "N", "optimizer steps of each of two runs, 100 or more (default: 1000000)"
    )


def measure(settings: Settings) -> bool:
    """Print a table of commands with their memory and time; False if a command fails."""
    with tempfile.TemporaryDirectory(prefix="largebatch-bench-") as folder:
        return _measure(Path(folder), settings.rows)


def _measure(folder: Path, num_rows: int) -> bool:
    from largebatch.records.trackers import print_table

    first, second = (_write_run(folder / name, batch, num_rows) for name, batch in (("first", 32), ("second", 64)))
    verb = [sys.executable, "-m", "largebatch"]
    metrics = str(first / "metrics.jsonl")
    call = [sys.executable, "-c", _CALL]
    commands = {
        "all rows in memory at once": [*call, "read_whole", metrics],
        "end of a run: its pictures": [*call, "draw_end", metrics, str(folder / "plots")],
        "report, of both runs": [*verb, "report", str(first), str(second), "--out", str(folder / "page.html")],
        "compare": [*verb, "compare", str(first), str(second), "--out", str(folder / "compared")],
        "diff": [*verb, "diff", str(first), str(second)],
        "resume, setting half of the rows aside": [*call, "set_aside", metrics, str(num_rows // 2)],
    }
    rows = []
    for what, command in commands.items():
        code, peak, seconds, busy = _run(command)
        rows.append((what, f"{peak / 2**20:,.0f} MiB", f"{seconds:.1f} s", f"{busy:.1f} s"))
        if code != (what == "diff"):  # the runs differ
            print(f"largebatch bench rows: {what} ended with {code}", file=sys.stderr)
            return False
    of_metrics, of_page = (os.path.getsize(file) / 2**20 for file in (metrics, folder / "page.html"))
    title = f"{num_rows:,} rows of each run, {of_metrics:,.0f} MiB of metrics; the page has {of_page:.1f} MiB"
    print_table(("what", "peak memory", "time", "CPU time"), rows, title=title)
    return True


def read_whole(metrics: str) -> None:
    """Read all rows into memory."""
    from largebatch.records.trackers import read_metrics

    print(len(read_metrics(metrics)), "rows")


def draw_end(metrics: str, folder: str) -> None:
    """Draw the pictures of a run's end."""
    from largebatch.records.figures.run_figures import draw_run
    from largebatch.records.figures.run_metrics import is_drawn
    from largebatch.records.rows.columns import read_columns

    print(*draw_run(read_columns(metrics, is_drawn), Path(folder), title="run"))


def set_aside(metrics: str, step: str) -> None:
    """Set the rows after a step aside, as a resumed run does."""
    from largebatch.records.trackers import set_stale_rows_aside

    print(set_stale_rows_aside(metrics, int(step)))


def _run(command: Sequence[str]) -> tuple[int, int, float, float]:
    """Exit code, peak memory in bytes, wall seconds and CPU seconds of a command in a process of its own."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # wait4 has reaped it
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = time.perf_counter() - started
    return process.returncode, used.ru_maxrss * unit, seconds, used.ru_utime + used.ru_stime


def _write_run(folder: Path, batch: int, num_rows: int) -> Path:
    """A run that logs every step, evaluates a hundred times and keeps a ledger."""
    draw = random.Random(batch)
    losses = [2 - step / num_rows + draw.random() / 10 for step in range(num_rows)]
    write_record(folder / "plan.json", {"global_batch_size": batch, "world_size": 1, "num_samples": 1024, "ramp": []})
    write_whole(folder / "config.yaml", _CONFIG)
    write_whole(folder / "metrics.jsonl", map(_line, _metrics(losses, batch, draw)))
    write_whole(folder / "ledger.jsonl", map(_line, _ledger(losses, batch, draw)))
    return folder


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _metrics(losses: Sequence[float], batch: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    num_rows = len(losses)
    for step, loss in enumerate(losses, start=1):
        place = {"step": step, "samples_seen": step * batch}
        yield place | _training_row(step, batch, loss, draw.random())
        if step % (num_rows // _EVALUATIONS) == 0:
            known = {"eval/train_loss": loss, "eval/val_loss": loss + 0.1, "eval/val_accuracy": step / num_rows}
            yield place | known | {"gap/loss": 0.1}


def _ledger(losses: Sequence[float], batch: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    for step, loss in enumerate(losses, start=1):
        ids = f"{draw.getrandbits(256):064x}"
        yield {"step": step, "samples_seen": step * batch, "ids": ids, "lr": (0.1).hex(), "loss": loss.hex()}


def _training_row(step: int, batch: int, loss: float, noise: float) -> dict[str, float]:
    """The metrics that a run writes by default."""
    step_s = 0.5 + noise / 100
    return {
        "epoch": step * batch / 1024, "wall_s": step * 0.5, "train/loss": loss, "train/lr": 0.1,
        "train/grad_norm": 1 + noise, "train/global_batch_size": batch, "train/samples_per_s": batch / step_s,
        "time/step_s": step_s, "time/compute_s": 0.5, "time/data_s": 0.0, "time/communication_s": 0.0,
        "memory/peak_bytes": 2**30,
    }  # fmt: skip
