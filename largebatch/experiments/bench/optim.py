"""`largebatch bench optim`: the step time of LAMB and LARS against torch's fused AdamW and SGD, on this machine."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch.diagnostics.intervals import median_interval
from largebatch.experiments.bench.settings import at_least, new_file, setting, some_of
from largebatch.records.durable_files import write_record

if TYPE_CHECKING:
    from largebatch.experiments.bench.optimizer_race import Result

SHAPES = ("resnet50", "bert_base")


@dataclass(frozen=True)
class Settings:
    """The race to run; `threads=0` leaves the number to torch. Raises ValueError for a device that is not there."""

    shapes: tuple[str, ...] = setting(
        SHAPES,
        some_of(SHAPES),
        "NAME,...",
        f"models with these parameter shapes: {', '.join(SHAPES)} (default: both)",
    )
    rounds: int = setting(30, at_least(5), "N", "timed steps of every optimizer, 5 or more (default: 30)")
    threads: int = setting(0, at_least(1), "N", "threads of torch on the CPU (default: torch's own choice)")
    device: str = setting("cpu", lambda key, text: text, "DEVICE", "cpu, cuda, cuda:1, ... (default: cpu)")
    json: str = setting("", new_file, "FILE", "write the times of every round there as well")

    def __post_init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at import; unset, torch's profiler logs every start
        import torch

        try:
            torch.empty(1, device=self.device).item()
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={self.device}: {str(error).splitlines()[0]}") from None


def measure(settings: Settings) -> bool:
    """Print a table for each optimizer and model; True."""
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
    return True


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
    from largebatch.records.trackers.tables import print_table

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
    headers = ("optimizer", "ms per step", "ratio", "1st s", "mem%")
    print_table(headers, rows, title=f"{title}: medians of {len(base)} rounds, 95 % intervals", styles=("", "bold"))
