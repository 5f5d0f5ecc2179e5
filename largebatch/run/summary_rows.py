"""The summary that `train` prints at its end: its rows, and suggested next commands."""

from __future__ import annotations

from typing import Any

from largebatch.records.graded_runs import PREDICTIONS
from largebatch.records.rows.augmented_gap import AUGMENTED_GAP, gap_remark
from largebatch.run.build import OpenRun
from largebatch.run.forecast.forecast import grade_row
from largebatch.run.growth_report import decision_rows_of


def summary_rows(opened: OpenRun, summary: dict[str, Any], hint: str | None) -> list[tuple[str, object]]:
    """The rows of the summary that `train` prints at its end.

    Args:
        opened: the run that has ended.
        summary: of summary.json.
        hint: a remedy, if the run diverged.
    """
    rows: list[tuple[str, object]] = [
        ("status", summary["status"] + (f": {reason}" if (reason := summary.get("end_reason")) else "")),
        ("steps", f"{summary['steps']:,} of {opened.run.steps.num_steps:,}"),
        ("samples", f"{summary['samples_seen']:,} ({summary['epochs']:.4g} epochs)"),
        ("time in steps", f"{summary['train_seconds']:.1f} s"),
        *_throughput_rows(summary),
    ]
    for name, label, error in (
        ("eval/train_accuracy", "train accuracy", None),
        ("eval/val_accuracy", "validation accuracy", "eval/val_accuracy_stderr"),
        ("gap/accuracy", "accuracy gap", "gap/accuracy_stderr"),
        ("eval/val_loss", "validation loss", None),
        ("gap/loss", "loss gap", "gap/loss_stderr"),
        ("eval/ema_val_accuracy", "accuracy of the average", "eval/ema_val_accuracy_stderr"),
        ("eval/ema_val_loss", "loss of the average", None),
    ):
        if name in summary:
            spread = f" ± {summary[error]:.4f}" if error in summary else ""
            remark = gap_remark(summary.get(AUGMENTED_GAP)) if name.startswith("gap/") else ""
            rows.append((label, f"{summary[name]:.4f}{spread}{remark}"))
    rows += [
        (f"validation {name}", f"{summary[key]:.4f}")
        for name in opened.evaluation.metrics
        if (key := f"eval/val_{name}") in summary
    ]
    if summary.get("evaluated_after_step", summary["steps"]) != summary["steps"]:
        rows.append(("evaluated", f"after step {summary['evaluated_after_step']:,}, before the run was stopped"))
    rows += _guard_rows(opened)
    rows += _noise_scale_rows(opened)
    if opened.growth is not None:
        rows += decision_rows_of(opened.growth.totals, opened.growth.decisions)
    if opened.communication is not None and (communication := opened.communication.summary()) is not None:
        rows.append(("communication", communication))
    if graded := grade_row(summary.get(PREDICTIONS, {})):
        rows.append(("predicted", graded))
    if hint is not None:
        rows.append(("hint", hint))
    if opened.checkpoints.unsaved is not None:
        rows.append(("NOT SAVED", f"the weights after step {summary['steps']:,}: {opened.checkpoints.unsaved}"))
    if opened.checkpoint is not None:
        rows.append(("checkpoint", opened.checkpoint.relative_to(opened.folder.path)))
    return rows


def _throughput_rows(summary: dict[str, Any]) -> list[tuple[str, object]]:
    if summary["samples_per_s"] is None:
        return []
    rows: list[tuple[str, object]] = [("throughput", f"{summary['samples_per_s']:,.4g} samples/s")]
    if "tokens_per_s" in summary:
        each, seen = summary["tokens_per_s_per_device"], summary["tokens_seen"]
        rows = [
            ("tokens", f"{seen:,}"),
            ("throughput", f"{summary['tokens_per_s']:,.0f} tokens/s, {each:,.0f} per device"),
        ]
    if summary["mfu"] is not None:
        rows.append(("MFU", f"{summary['mfu']:.1%} of the devices' peak"))
    return rows


def _guard_rows(opened: OpenRun) -> list[tuple[str, object]]:
    if opened.run.guard is None:
        return []
    counts = opened.run.guard.counts
    overflows = f"; {counts.overflows:,} overflows of the loss scale" if counts.overflows else ""
    found = f"{counts.bad:,} bad steps: {counts.skipped:,} skipped, {counts.rolled_back:,} rolled back"
    return [("guard", found + overflows)]


def _noise_scale_rows(opened: OpenRun) -> list[tuple[str, object]]:
    if opened.noise_scale is None or opened.noise_scale.latest is None:
        return []
    scale, ramp = opened.noise_scale.latest, opened.run.steps.batches.ramp
    batch = ramp.at(opened.run.progress.samples_seen).global_batch_size
    samples, steps = scale.sample_efficiency(batch), scale.step_efficiency(batch)
    groups = [(f"noise scale, {name}", str(one)) for name, one in opened.noise_scale.latest_of_groups.items()]
    if opened.run.gradient.norms.has_geometry:
        missing = "not measured: the optimizer's state averages fewer than ten gradients yet"
        text = str(opened.noise_scale.latest_of_optimizer or missing)
        groups.insert(0, ("noise scale in the optimizer's geometry", text))
    if samples is None or steps is None:
        return [("noise scale", str(scale)), *groups]
    return [
        ("noise scale", f"{scale} at the end; batches several times larger waste samples"),
        *groups,
        (
            f"batch {batch:,}",
            f"predicted: {1 / samples:.2f} times the fewest samples, {1 / steps:.2f} times the fewest steps",
        ),
    ]


def next_commands(opened: OpenRun, status: str) -> list[tuple[str, str]]:
    """Suggested next commands, each with its purpose."""
    commands = [("upload", command) for one in opened.trackers if (command := getattr(one, "sync_command", None))]
    commands += [("board", command) for one in opened.trackers if (command := getattr(one, "show_command", None))]
    if status == "stopped":
        commands.append(("resume", f"the same command with run.dir={opened.folder.path} resume=auto"))
    return commands
