"""Presents an attribution: parts with their intervals, the runs behind them, and a waterfall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch.diagnostics.gap.attribution import Attribution, Effect, attribute
from largebatch.diagnostics.intervals import LEAST_SEEDS, Interval, mean_interval
from largebatch.experiments.attribution.corners import NOISE, RULE, STEPS, UNSCALED, Corner, Design
from largebatch.experiments.attribution.matched_runs import Ended
from largebatch.experiments.attribution.settings import AttributionConfig
from largebatch.records.figures.diagram import Axis
from largebatch.records.figures.figure import Bar, Bars
from largebatch.records.result import Result, Table

_METRICS = {
    "eval/val_loss": "validation loss",
    "eval/train_loss": "training loss",
    "eval/val_accuracy": "validation accuracy",
    "eval/train_accuracy": "training accuracy",
}
_WORSE, _BETTER = "makes it worse", "makes it better"
_HEADERS = ("part", "change", "95 % interval", "p", "in each order")
_CAPTION = (
    "Each bar begins where the one above it ends: from the small batch (top) to the large one (bottom). Whiskers: 95 % "
    "interval of the change over seeds, paired by seed. Less noise: more samples per step, at the same steps and rate. "
    "Fewer steps: fewer and longer ones, as the rules scale them."
)


def show_design(design: Design, options: AttributionConfig, folder: Path) -> None:
    """Print what will be trained, and what it takes."""
    samples = sum(one.num_samples for one in design.runs)
    times = samples / design.small.num_samples
    print(
        f"{len(design.runs)} kinds of runs with {options.seeds} seeds each, {samples * options.seeds:,} samples in all "
        f"({times:.3g} times the runs at batch {design.small.global_batch_size:,}), into {folder}",
        flush=True,
    )


def attribution_result(
    design: Design,
    options: AttributionConfig,
    ended: Mapping[tuple[Corner, int], Ended],
    *,
    first_seed: int,
    title: str,
) -> Result:
    """The attribution as sentences, tables, a waterfall and numbers."""
    sign = 1.0 if options.is_loss else -1.0
    seeds = range(first_seed, first_seed + options.seeds)
    values = {corner: [sign * ended[corner, seed].value for seed in seeds] for corner in design.runs}
    what, large = _METRICS[options.metric], design.large.global_batch_size
    heading = f"{what}, batch {large:,} against {design.small.global_batch_size:,}, {title}"
    runs = _runs_table(design, values, sign, what)
    found, reason = None, ""
    try:
        found = attribute({key: values[corner] for key, corner in design.corners.items()}, design.orders)
    except ValueError as error:
        reason = str(error)
    sentences = [f"Batch {large:,}: {reason} {_diverged(design, values)}"] if found is None else []
    if found is not None:
        sentences = _sentences(design, options, found, values, what)
    return Result(
        title="The loss of a larger batch, by cause",
        question=f"Why does batch {large:,} not end as batch {design.small.global_batch_size:,} does?",
        sentences=sentences,
        tables=[*([_parts_table(found, what)] if found else []), runs],
        figures=[_waterfall(design, found, values, sign, what)] if found else [],
        numbers=_numbers(design, options, found, values, sign),
        runs=[ended[corner, seed].folder for corner in design.runs for seed in seeds],
        picture="attribution.png",
        heading=heading,
    )


def _sentences(
    design: Design, options: AttributionConfig, found: Attribution, values: Mapping[Corner, Sequence[float]], what: str
) -> list[str]:
    small, large = design.small, design.large
    sides = f"Batch {large.global_batch_size:,} against {small.global_batch_size:,}, after equal samples"
    how = " with hyper-parameters left unscaled" if design.is_scaled else ""
    lines = [f"{sides}{how}: {_change(found.total.mean, what, options)}."]
    if design.is_scaled:
        by_seed = [after - before for after, before in zip(values[large], values[small], strict=True)]
        lines.append(f"With hyper-parameters scaled by the rules: {_change(mean_interval(by_seed), what, options)}.")
    else:
        lines.append("The rules change no hyper-parameter between the two batches, so that none of it is theirs.")
    lines += [f"{part.name.capitalize()}: {_change(part.mean, what, options)}." for part in found.parts]
    lines += [_interaction(part) for part in found.parts if len(part.by_order) > 1][:1]
    if found.left_out:
        lines.append(
            f"Few steps at batch {small.global_batch_size:,} diverged, so that parts are those of one order alone: "
            f"{', then '.join(found.orders[0])}."
        )
    return lines


def _change(one: Interval, what: str, options: AttributionConfig) -> str:
    """The change as text, and whether seeds tell it from none.

    A rise of the loss and a fall of the accuracy are positive.
    """
    moved = "rises" if (one.value > 0) == options.is_loss else "falls"
    amount = f"{what} {moved} by {abs(one.value):.3g}"
    if math.isnan(one.low):
        few = f"fewer than {LEAST_SEEDS} seeds" if options.seeds < LEAST_SEEDS else "all seeds alike"
        return f"{amount} ({few}: no interval)"
    low, high = _ends(one)
    doubt = "" if one.low > 0 or one.high < 0 else ", which the seeds cannot tell from 0"
    return f"{amount} (95 %: {low:.3g} to {high:.3g}){doubt}"


def _ends(one: Interval) -> tuple[float, float]:
    """Ends of the amount, in the direction of the change."""
    return (one.low, one.high) if one.value > 0 else (-one.high, -one.low)


def _interaction(part: Effect) -> str:
    (first, one), (_, other) = part.by_order.items()
    return (
        f"Steps and noise interact: {part.name} alone {_word(one)}, after {first[1]} {_word(other)}. The parts are the "
        "means of both orders."
    )


def _word(value: float) -> str:
    return f"changes it by {value:+.3g}"


def _diverged(design: Design, values: Mapping[Corner, Sequence[float]]) -> str:
    names = [_described(design, one) for one in design.runs if not all(map(math.isfinite, values[one]))]
    return f"Diverged: {'; '.join(names)}."


def _parts_table(found: Attribution, what: str) -> Table:
    rows = [_row(part) for part in (*found.parts, found.total)]
    return Table(f"parts of the change in {what}; positive: worse; they add up to the total", _HEADERS, rows)


def _row(part: Effect) -> tuple[str, ...]:
    one = part.mean
    interval = "no interval" if math.isnan(one.low) else f"{one.low:+.4g} to {one.high:+.4g}"
    ways = {f"{value:+.3g}" for value in part.by_order.values()}
    orders = " or ".join(sorted(ways)) if len(ways) > 1 else ""
    return part.name, f"{one.value:+.4g}", interval, "" if part.p is None else f"{part.p:.2g}", orders


def _runs_table(design: Design, values: Mapping[Corner, Sequence[float]], sign: float, what: str) -> Table:
    rows = []
    for corner in design.runs:
        found = mean_interval([sign * value for value in values[corner]])
        ends = "" if math.isnan(found.low) else f"{found.low:.4g} to {found.high:.4g}"
        rows.append(
            (
                _described(design, corner), f"{corner.global_batch_size:,}", f"{corner.num_steps:,}",
                _hyper_parameters(corner), f"{corner.num_samples:,}",
                f"{found.value:.4g}" if math.isfinite(found.value) else "diverged", ends,
            )
        )  # fmt: skip
    headers = ("run", "batch", "steps", "hyper-parameters", "samples", what, "95 % interval")
    return Table("the runs", headers, rows)


def _described(design: Design, corner: Corner) -> str:
    """The changes that lead to it; of several ways the shortest."""
    changes = min((one for one, same in design.corners.items() if same == corner), key=len)
    named = [name for name in (NOISE, STEPS, RULE, UNSCALED) if name in changes]
    return ", ".join(named) or "small batch"


def _hyper_parameters(corner: Corner) -> str:
    return f"of batch {corner.rule_batch_size:,}" + ", tuned" * corner.is_tuned


def _waterfall(
    design: Design, found: Attribution, values: Mapping[Corner, Sequence[float]], sign: float, what: str
) -> Bars:
    """From the small batch to the large one; accuracies as errors, so that longer is worse."""
    base = 0.0 if sign > 0 else 1.0
    at = base + math.fsum(values[design.small]) / len(values[design.small])
    bars = [Bar(0, at, at, text=f"{at:.3g}")]
    for row, part in enumerate(found.parts, start=1):
        one = part.mean
        label = "" if one.value == 0 else _WORSE if one.value > 0 else _BETTER
        low, high = (None, None) if math.isnan(one.low) else (at + one.low, at + one.high)
        bars.append(Bar(row, at, at + one.value, label, low, high, f"{one.value:+.3g}"))
        at += one.value
    rows = [f"batch {design.small.global_batch_size:,}", *(part.name for part in found.parts)]
    rows.append(f"batch {design.large.global_batch_size:,}" + ", unscaled" * design.is_scaled)
    bars.append(Bar(len(rows) - 1, at, at, text=f"{at:.3g}"))
    axis = Axis(what if sign > 0 else what.replace("accuracy", "error"))
    title = "Why the larger batch ends elsewhere"
    return Bars("attribution", title, axis, Axis("part"), rows, tuple(bars), True, _CAPTION, ("", _WORSE, _BETTER))


def _numbers(
    design: Design,
    options: AttributionConfig,
    found: Attribution | None,
    values: Mapping[Corner, Sequence[float]],
    sign: float,
) -> dict[str, Any]:
    parts = [] if found is None else [_record(part) for part in found.parts]
    return {
        "metric": options.metric,
        "small": design.small.global_batch_size,
        "large": design.large.global_batch_size,
        "is_scaled": design.is_scaled,
        "parts": parts,
        "total": None if found is None else _record(found.total),
        "orders": [] if found is None else [list(order) for order in found.orders],
        "runs": [
            {
                "global_batch_size": corner.global_batch_size,
                "num_steps": corner.num_steps,
                "rule_batch_size": corner.rule_batch_size,
                "is_tuned": corner.is_tuned,
                "values": [sign * value for value in values[corner]],
            }
            for corner in design.runs
        ],
    }


def _record(part: Effect) -> dict[str, Any]:
    return {
        "name": part.name,
        "value": part.mean.value,
        "low": part.mean.low,
        "high": part.mean.high,
        "p": part.p,
        "by_seed": part.by_seed.tolist(),
        "by_order": list(part.by_order.values()),
    }
