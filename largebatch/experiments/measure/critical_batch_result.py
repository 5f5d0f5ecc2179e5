"""The result of `measure critical-batch`: sentences, table, figure and numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from largebatch.batch.scaling import RATE_EXPONENTS
from largebatch.diagnostics.critical_batch.branches import Branches, Crossing, doubling_without_noise
from largebatch.diagnostics.intervals import Interval
from largebatch.experiments.measure.branch_design import Design
from largebatch.experiments.measure.weights import Weights
from largebatch.records.figures.branch_figures import branch_figure
from largebatch.records.result import Result, Table
from largebatch.run.config.measure import MeasureConfig
from largebatch.run.prepare import Prepared

_WHOLE_FROM = 100
_HEADERS = ("batch", "steps", "learning rate", "loss", "above the smallest batch", "95 % interval", "diverged")


def result_of(
    prepared: Prepared,
    options: MeasureConfig,
    weights: Weights,
    design: Design,
    found: Branches,
    factors: tuple[float, ...],
    *,
    start: int,
) -> Result:
    """What the branches say; `factors` are of the rates of each batch size, `start` is in samples of the run."""
    chosen = options.critical_batch
    crossings = found.doubling(), found.tolerated(chosen.tolerance)
    alone = _of_rates(prepared.config.scaling.rule, found, crossings[0], factors)
    name, count = chosen.evaluate_on, sum(one.num_samples for one in design.shares)
    title = (
        f"branches of {found.num_samples:,} samples from {weights.source}, mean of {design.num_windows} windows, on "
        f"{count:,} {name} samples"
    )
    rows = _rows(found, design, factors, start)
    return Result(
        title="Critical batch",
        sentences=[
            *_sentences(prepared, found, crossings, chosen.tolerance),
            _rate_text(prepared, design, factors) + _alone_text(found, alone),
        ],
        tables=[Table(title, _HEADERS, [_cells(row, design.num_windows) for row in rows])],
        figures=[branch_figure(found, crossings, chosen.tolerance, unit=prepared.loss.unit)],
        numbers={
            "b_crit": dataclasses.asdict(crossings[0]),
            "b_crit_of_rates": alone,
            "tolerated": dataclasses.asdict(crossings[1]) | {"tolerance": chosen.tolerance},
            "samples_seen": start,
            "batch_size": prepared.numbers.ramp.at(start).global_batch_size,
            "num_samples": found.num_samples,
            "rate_rule": prepared.config.scaling.rule,
            "progress": dataclasses.asdict(found.progress()),
            "branches": rows,
            "losses": found.losses.tolist(),
            "halfway": found.halfway.tolist(),
            "settings": options.model_dump(),
        },
        question="How large may the batch be now?",
        picture="critical_batch.png",
        heading=f"{prepared.config.shown_name}, {weights.source}",
    )


def _rows(found: Branches, design: Design, factors: tuple[float, ...], start: int) -> list[dict[str, Any]]:
    means, lows, highs = found.rises()
    rows = []
    for place, size in enumerate(found.batch_sizes):
        branch = design.branches[place][design.rate_factors.index(factors[place])]
        lr = design.lr_at(start + found.num_samples // 2) * branch.rate_scale
        rows.append({
            "batch_size": size,
            "steps": found.num_samples // size,
            "lr": lr,
            "rate_factor": factors[place],
            "loss": float(found.losses[:, place].mean()),
            "rise": float(means[place]),
            "low": float(lows[place]),
            "high": float(highs[place]),
            "diverged": int((~(found.losses[:, place] < math.inf)).sum()),
        })  # fmt: skip
    return rows


def _cells(row: dict[str, Any], num_windows: int) -> tuple[str, ...]:
    diverged = f"{row['diverged']} of {num_windows}" if row["diverged"] else ""
    return (
        f"{row['batch_size']:,}", f"{row['steps']:,}", f"{row['lr']:.4g}", f"{row['loss']:.5g}",
        f"{row['rise']:+.2g}", f"{row['low']:+.2g} to {row['high']:+.2g}", diverged,
    )  # fmt: skip


def _sentences(
    prepared: Prepared, found: Branches, crossings: tuple[Crossing, Crossing], tolerance: float
) -> list[str]:
    doubling, tolerated = crossings
    smallest = f"batch {found.batch_sizes[0]:,}"
    unit = prepared.loss.unit
    return [
        f"B_crit is {_text(found, doubling)}: a batch of B_crit needs twice the samples of {smallest} for the same "
        f"loss.{_no_progress(found, doubling)}",
        f"The largest batch whose loss after the same {found.num_samples:,} samples is at most {tolerance:g} per "
        f"{unit} above that of {smallest} is {_text(found, tolerated)}.",
    ]


def _no_progress(found: Branches, doubling: Crossing) -> str:
    if doubling.low is not None:
        return ""
    progress = found.progress()
    moved = f"falls by {progress:.3g}"
    if progress.value < 0:
        moved = f"rises by {Interval(-progress.value, -progress.high, -progress.low):.3g}"
    return (
        f" The loss of the smallest batch {moved} over the second half of the samples: raise "
        "measure.critical_batch.steps or windows, or name smaller factors."
    )


def _text(found: Branches, one: Crossing) -> str:
    """A crossing for people; an open end is said to be open."""
    smallest, largest = found.batch_sizes[0], found.batch_sizes[-1]
    if one.low is None and one.high is None:
        return f"not known from batches of {smallest:,} to {largest:,}"
    low = "below" if one.low is None else f"{_size(one.low)}"
    if one.value is None:
        if one.low is None:
            return f"below {_size(one.high)} samples (95 %)"
        return f"above {low} samples (95 %)" if one.high is None else f"{low} to {_size(one.high)} samples (95 %)"
    low = f"below {smallest:,}" if one.low is None else low
    high = f"above {largest:,}" if one.high is None else f"{_size(one.high)}"
    return f"{_size(one.value)} samples (95 %: {low} to {high})"


def _rate_text(prepared: Prepared, design: Design, factors: tuple[float, ...]) -> str:
    rule, all_factors = prepared.config.scaling.rule, design.rate_factors
    if len(all_factors) == 1:
        factor = "" if all_factors == (1.0,) else f", times {all_factors[0]:g}"
        return (
            f"Rates follow scaling.rule={rule}{factor}, and are not tuned: a batch may fail by its rate. Name several "
            "measure.critical_batch.rate_factors to tell."
        )
    rates = f"Each batch has the best of {len(all_factors)} rates around scaling.rule={rule}"
    ends = {all_factors[0], all_factors[-1]}
    at_end = [f"{size:,}" for size, one in zip(design.batch_sizes, factors, strict=True) if one in ends]
    if not at_end:
        return f"{rates}; none is best at an end of them."
    return (
        f"{rates}. For batch {', '.join(at_end)} it is the first or last of them: name more "
        "measure.critical_batch.rate_factors."
    )


def _of_rates(rule: str, found: Branches, doubling: Crossing, factors: tuple[float, ...]) -> float | None:
    """B_crit by the rule of the rate alone; None: the interval rules it out, there is none, or rates were chosen."""
    if doubling.low is None and doubling.high is None:
        return None
    alone = doubling_without_noise(found.batch_sizes[0], RATE_EXPONENTS[rule])
    is_within = (doubling.low or 0.0) <= alone <= (math.inf if doubling.high is None else doubling.high)
    return alone if is_within and math.isfinite(alone) and len(set(factors)) == 1 else None


def _alone_text(found: Branches, alone: float | None) -> str:
    if alone is None:
        return ""
    return (
        f" Without any noise B_crit would be {_size(alone)} under this rule, where the sum of the rates is half that "
        f"of batch {found.batch_sizes[0]:,}: what was measured may be the rule."
    )


def _size(samples: float | None) -> str:
    """A batch size that need not be whole: small ones with a fraction, or an interval would seem to be a point."""
    assert samples is not None
    return f"{samples:,.0f}" if samples >= _WHOLE_FROM else f"{samples:.3g}"
