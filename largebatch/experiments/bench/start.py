"""`largebatch bench start`: how long answers take that come before a run, and its first step, as whole processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.experiments.bench.settings import at_least, setting

_FIRST_STEP = ("train", "debug=tiny", "length=1steps", "logger=none", "observers.evaluation.every=null")
# What is measured -> its arguments and exit code.
COMMANDS = {
    "list of verbs, --help": (("--help",), 0),
    "versions, --version": (("--version",), 0),
    "help of a verb, train --help": (("train", "--help"), 0),
    "one key, help batch.total": (("help", "batch.total"), 0),
    "TAB behind optimizer=": (("completion", "reply", "bash", "largebatch train optimizer="), 0),
    "an unknown key": (("train", "lr=0.1"), 2),
    "a wrong value": (("train", "length=10"), 2),
    "plan": (("plan",), 0),
    "first step and end of a run": (_FIRST_STEP, 0),
}


@dataclass(frozen=True)
class Settings:
    """How often each command runs."""

    repetitions: int = setting(5, at_least(1), "N", "processes of each command, one after another (default: 5)")


def measure(settings: Settings) -> bool:
    """Print a table of commands with the median and the range of their wall time; False if one ends unexpectedly."""
    from largebatch.records.trackers import print_table

    rows = []
    with tempfile.TemporaryDirectory(prefix="largebatch-bench-") as folder:
        for what, (arguments, expected) in COMMANDS.items():
            times = []
            for _ in range(settings.repetitions):
                code, seconds = timed([sys.executable, "-m", "largebatch", *arguments], folder)
                if code != expected:
                    print(f"largebatch bench start: {' '.join(arguments)} ended with {code}", file=sys.stderr)
                    return False
                times.append(seconds)
            rows.append((what, f"{statistics.median(times):.2f} s", f"{min(times):.2f} to {max(times):.2f} s"))
    title = f"wall time of whole processes, median of {settings.repetitions}"
    print_table(("what", "median", "range"), rows, title=title)
    return True


def timed(command: Sequence[str], folder: str) -> tuple[int, float]:
    """Exit code and wall seconds of a silent process in a folder."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode, time.perf_counter() - started
