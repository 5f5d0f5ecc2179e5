"""torch.profiler over a few steps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from largebatch.records.durable_files import replacing, write_whole
from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport


class ProfileObserver(Observer):
    """Records `num_steps` steps on rank 0 after some that warm up: trace.json and a table of operators."""

    def __init__(self, folder: Path, *, num_steps: int, warmup_steps: int) -> None:
        self._folder = folder
        self._num_steps = num_steps
        self._warmup_steps = warmup_steps
        self._profiler: profile | None = None

    def on_start(self, run: Run) -> None:
        """Start the profiler."""
        if run.runtime.is_main:
            activities = [ProfilerActivity.CPU]
            if run.runtime.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            plan = schedule(wait=0, warmup=self._warmup_steps, active=self._num_steps, repeat=1)
            self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
            self._profiler.start()

    def after_step(self, run: Run, report: StepReport) -> None:
        """Tell the profiler that a step is over."""
        if self._profiler is not None:
            self._profiler.step()

    def on_end(self, run: Run, status: str) -> None:
        """Stop the profiler; a run that was interrupted while recording writes what there is."""
        if self._profiler is not None:
            self._profiler.stop()

    def _write(self, profiler: torch.profiler.profile) -> None:
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=50)
        write_whole(self._folder / "profile.txt", table + "\n")
        with replacing(self._folder / "trace.json") as draft:
            profiler.export_chrome_trace(str(draft))
        print(table)
