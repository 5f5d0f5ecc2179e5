"""Trains the run of a config on fake GPUs, as one of its ranks, and counts step by step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.device.fake_cuda import GPU
from tests.device.run_record import Counts, RunRecord, StepCounts

ROWS_EVERY = 3
COMMON = (
    "logger=none", "observers.progress=false", "observers.evaluation.every=null", "batch.total=64", "data.limit=256",
    f"observers.metrics.every={ROWS_EVERY}",
)  # fmt: skip


def train_and_count(
    overrides: Sequence[str],
    *,
    steps: int,
    slow: bool,
    folder: Path,
    heard: Sequence[list[Any]] = (),
    kernel_s: float | None = None,
) -> RunRecord:
    """The first `steps` steps of `largebatch train OVERRIDES`, prepared, opened and trained as the verb does it.

    Args:
        overrides: as on a command line.
        steps: of the run.
        slow: whether steps count as longer than 0.1 s, after each of which ranks agree.
        folder: where the run may write.
        kernel_s: time of a kernel; the run's clock is then that of the fake GPU and its host. None: real time.
        heard: what rank 0 said in the same run, on other ranks.
    """
    import largebatch.training.step_sums as step_sums
    from largebatch.run.build import open_run
    from largebatch.run.prepare import prepare
    from largebatch.training import loop
    from tests.unit.composing import compose_run

    step_sums.SLOW_STEP_S = -1.0 if slow else step_sums.SLOW_STEP_S
    given = [*COMMON, f"run.root={folder}", f"length={steps}steps", *overrides]
    prepared = prepare(compose_run(*given), os.environ)
    GPU.take()
    GPU.said = list(heard)
    parts: list[Counts] = []
    heads: list[tuple[int, bool]] = []
    take_step, sent = loop.take_step, step_sums.sent
    agreed: list[list[float]] = []

    def counted(run: Any, step: Any) -> Any:
        parts.append(GPU.take())
        heads.append((step.number, step.has_row(ROWS_EVERY)))
        report = take_step(run, step)
        if step.is_last:
            parts.append(GPU.take())
        return report

    def noted(values: Any, device: Any) -> Any:
        agreed.append(values.tolist())
        return sent(values, device)

    loop.take_step, step_sums.sent = counted, noted
    if kernel_s is not None:
        GPU.kernel_s, time.perf_counter = kernel_s, lambda: GPU.host_s
    with GPU, open_run(prepared, lambda: False, given) as opened:
        loop.train(opened.run)
    parts.append(GPU.take())
    assert len(heads) == steps, f"the run has ended after {len(heads)} of {steps} steps; problems: {GPU.problems}"
    counted_steps = [
        StepCounts(**vars(part), number=number, is_logged=logged)
        for part, (number, logged) in zip(parts[1:], heads, strict=False)
    ]
    loop.take_step, step_sums.sent = take_step, sent
    metrics = opened.folder.metrics
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return RunRecord(parts[0], counted_steps[:-1], parts[-1], list(GPU.problems), GPU.said, rows, agreed, GPU.kernel_s)
