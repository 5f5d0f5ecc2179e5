"""Writes folders as `largebatch train` leaves them, with values that a test can foresee."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = """\
seed: {seed}
data: {{name: digits, validation: {{_target_: largebatch.data.digits}}}}
loss: {{_target_: largebatch.losses.CrossEntropy}}
model: {{_target_: largebatch.models.ConvNet, width: {width}}}
optimizer: {{_target_: largebatch.optim.{optimizer}, momentum: 0.9}}
batch: {{total: {batch}}}
"""
NUM_SAMPLES = 1024


def write_run(
    folder: Path,
    batch: int,
    *,
    accuracy: float = 0.9,
    seed: int = 0,
    optimizer: str = "LARS",
    width: int = 16,
    num_rows: int = 8,
    step_s: float = 0.5,
    extra: dict[str, Any] | None = None,
    status: str | None = "finished",
) -> Path:
    """A run of 8 evaluations over 8,192 samples; accuracy rises linearly to `accuracy`, its error is 0.01.

    Args:
        folder: of the run.
        batch: global, one process, micro-batches of 16 at most.
        accuracy: at the end; the validation loss is its distance from 2, the loss gap 0.1, the accuracy gap 0.05.
        seed: of the run.
        optimizer: a name in `largebatch.optim`.
        width: a setting in which runs may differ.
        num_rows: training rows and evaluations.
        step_s: time of a step.
        extra: keys for every training row.
        status: of the summary; None: there is none.
    """
    folder.mkdir(parents=True)
    plan = {
        "global_batch_size": batch, "world_size": 1, "max_micro_batch_size": 16, "grad_accum_steps": -(-batch // 16),
        "num_samples": NUM_SAMPLES, "ramp": [],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, batch=batch, optimizer=optimizer, width=width))
    rows: list[dict[str, Any]] = []
    for number in range(1, num_rows + 1):
        share = number / num_rows
        here = {
            "step": round(8192 * share / batch),
            "samples_seen": round(8192 * share),
            "epoch": 8 * share,
            "wall_s": share,
        }
        training = {
            "train/loss": 2 - share, "train/lr": 0.1, "train/global_batch_size": batch,
            "train/samples_per_s": batch / step_s, "time/step_s": step_s, "time/compute_s": step_s,
            "time/data_s": 0.0, "time/communication_s": 0.0,
        }  # fmt: skip
        value = accuracy * share
        evaluation = {
            "eval/train_loss": 1.9 - value, "eval/val_loss": 2 - value, "eval/train_accuracy": value + 0.05,
            "eval/val_accuracy": value, "eval/val_accuracy_stderr": 0.01, "gap/loss": 0.1, "gap/loss_stderr": 0.02,
            "gap/accuracy": 0.05, "gap/accuracy_stderr": 0.01,
        }  # fmt: skip
        rows += [here | training | (extra or {}), here | evaluation]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status is not None:
        (folder / "summary.json").write_text(json.dumps({"status": status}))
    return folder


def write_json(path: Path, values: dict[str, Any]) -> Path:
    """A record of a measurement or study."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path
