"""`largebatch bench optim`: what a step of LAMB and LARS costs beside torch's fused AdamW and SGD, on this machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch.cli.bench import at_least, key_values, some_of
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT
from largebatch.diagnostics.intervals import median_interval
from largebatch.records.durable_files import write_record

if TYPE_CHECKING:
    from largebatch.experiments.bench.optimizer_race import Result

SHAPES = ("resnet50", "bert_base")
USAGE = f"""usage: largebatch bench optim [KEY=VALUE ...]

  shapes=NAME,...   parameters of which models: {", ".join(SHAPES)} (default: both)
  rounds=N          timed steps of every optimizer, 5 or more (default: 30)
  threads=N         threads of torch on the CPU (default: torch's own choice)
  device=DEVICE     cpu, cuda, cuda:1, ... (default: cpu)
  json=FILE         write the times of every round there as well"""


@dataclass(frozen=True)
class Settings:
    """What to measure; `threads` 0 is torch's own choice."""

    shapes: tuple[str, ...] = SHAPES
    rounds: int = 30
    threads: int = 0
    device: str = "cpu"
    json: str = ""


def main(arguments: Sequence[str]) -> int:
    """`bench optim [KEY=VALUE ...]`; returns 0, or 2 for wrong input."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE)
        return 0
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which reads it at import, tells of every start
    try:
        settings = parse(arguments)
        problem = _problem(settings)
    except ValueError as error:
        problem = str(error)
    if problem:
        print(f"largebatch bench optim: {problem}\n\n{USAGE}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    _measure(settings)
    return EXIT_DONE


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from `KEY=VALUE` arguments.

    Raises ValueError for the first one that is wrong.

    >>> parse(["shapes=resnet50", "rounds=7"])
    Settings(shapes=('resnet50',), rounds=7, threads=0, device='cpu', json='')
    """
    return Settings(**key_values(arguments, _VALUES))


def _text(key: str, text: str) -> str:
    return text


_VALUES: dict[str, Callable[[str, str], Any]] = {
    "shapes": some_of(SHAPES),
    "rounds": at_least(5),
    "threads": at_least(1),
    "device": _text,
    "json": _text,
}


def _problem(settings: Settings) -> str:
    """What this machine cannot do; empty if there is nothing."""
    import torch

    try:
        torch.empty(1, device=settings.device).item()
    except (RuntimeError, AssertionError) as error:
        return f"device={settings.device}: {str(error).splitlines()[0]}"
    if settings.json and not Path(settings.json).resolve().parent.is_dir():
        return f"json={settings.json}: there is no folder {Path(settings.json).resolve().parent}. Make it first."
    return ""


def _measure(settings: Settings) -> None:
    import torch

    from largebatch.experiments.bench.optimizer_race import ALGORITHMS, contestants, race

    if settings.threads:
        torch.set_num_threads(settings.threads)
    machine = _machine(settings)
    print("\n".join(f"{what:8} {value}" for what, value in machine.items()), flush=True)
    report: dict[str, Any] = {"machine": machine, "rounds": settings.rounds, "races": []}
    for shapes in settings.shapes:
        for algorithm in ALGORITHMS.values():
            rivals, absent = contestants(algorithm, settings.device)
            results, num_params = race(algorithm, rivals, shapes, settings.rounds, settings.device)
            print_race(f"{algorithm.name} on {shapes}, {num_params:,} parameters", results, algorithm.bytes_limit)
            if absent:
                print(f"not measured: {'; '.join(absent)}\n", flush=True)
            records = [vars(result) for result in results]
            report["races"].append({"algorithm": algorithm.name, "shapes": shapes, "results": records})
    if settings.json:
        write_record(settings.json, report)


def _machine(settings: Settings) -> dict[str, str]:
    import torch

    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.partition(":")[2].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        cpu = models[0] if models else cpu
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    machine = {"cpu": f"{cpu}, {os.cpu_count()} cores{load}, {torch.get_num_threads()} threads of torch"}
    if settings.device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(settings.device)
    return machine | {"torch": torch.__version__}


def print_race(title: str, results: Sequence[Result], bytes_limit: float) -> None:
    """Print the medians of a race against the first of `results`, in 80 columns."""
    from largebatch.records.trackers.console import print_table

    base = results[0].milliseconds
    rows = []
    for result in results:
        low, high = median_interval(sorted(result.milliseconds))
        ratios = sorted(ours / theirs for ours, theirs in zip(result.milliseconds, base, strict=True))
        low_ratio, high_ratio = median_interval(ratios)
        ratio = "1" if result is results[0] else f"{statistics.median(ratios):.2f} ({low_ratio:.2f}-{high_ratio:.2f})"
        rows.append(
            (
                result.name,
                f"{statistics.median(result.milliseconds):.1f} ({low:.1f}-{high:.1f})",
                ratio,
                f"{result.first_step_s:.2f}",
                f"{100 * result.extra_memory:.1f}",
            )
        )
    rows.append(("limit by bytes", "", f"{bytes_limit:.2f}", "", ""))
    headers = ("optimizer", "ms per step", "ratio", "1st s", "mem. %")
    print_table(headers, rows, title=f"{title}: medians of {len(base)} rounds, 95 % intervals", styles=("", "bold"))
