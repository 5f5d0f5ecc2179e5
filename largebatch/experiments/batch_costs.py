"""What each batch size takes to a target: steps, samples, time, price, energy, generalization; and the best trades."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.diagnostics.critical_batch.pareto import (
    DOMINATED,
    FRONT,
    UNDECIDED,
    Place,
    geometric_mean,
    pareto_places,
)
from largebatch.diagnostics.intervals import Interval, mean_interval
from largebatch.records.figures.diagram import Axis, Diagram, Line, Numbers
from largebatch.records.report.batches import interval_columns
from largebatch.records.report.target_runs import TargetRun
from largebatch.records.result import Table

# Costs that are positive: key -> label and form.
_COSTS = {"steps": "steps", "samples": "samples", "seconds": "seconds", "price": "price", "energy": "energy, kWh"}
_AT_TARGET = {"val_loss": "validation loss", "loss_gap": "loss gap"}
_NO_PRICE = "Price and energy are not known: set cost.device_hour and cost.device_watts before the runs."


@dataclass(frozen=True)
class BatchCost:
    """One optimizer at one batch size.

    Attributes:
        optimizer: its name.
        batch_size: B.
        num_missed: seeds that did not reach the target; then there are no costs.
        nearest: values of the metric that these came nearest with, where they are known.
        is_early: whether a first evaluation had passed the target, so that the steps are an upper bound.
        costs: key of `_COSTS` -> geometric mean over seeds; without those that are not known.
        at_target: key of `_AT_TARGET` -> mean over seeds.
        place: among the batch sizes of this optimizer, in time and samples; None: no time is known.
    """

    optimizer: str
    batch_size: int
    num_seeds: int
    num_missed: int
    costs: dict[str, Interval]
    at_target: dict[str, Interval]
    place: Place | None
    nearest: tuple[float, ...] = ()
    is_early: bool = False


def batch_costs(runs: Sequence[TargetRun]) -> list[BatchCost]:
    """The costs of each optimizer and batch size, ascending; runs of one seed count once."""
    found = []
    for optimizer in dict.fromkeys(run.optimizer for run in runs):
        own = [run for run in runs if run.optimizer == optimizer]
        by_size = {size: _by_seed([run for run in own if run.batch_size == size])
                   for size in sorted({run.batch_size for run in own})}  # fmt: skip
        resolution = max(run.resolution for run in own)
        places = _places(by_size, resolution)
        found += [_cost(optimizer, size, one, places.get(size)) for size, one in by_size.items()]
    return found


def _by_seed(runs: Sequence[TargetRun]) -> list[TargetRun]:
    """One run per seed, the last: a run with the seed of another one is that run again."""
    return list({run.seed: run for run in runs}.values())


def _places(by_size: dict[int, list[TargetRun]], resolution: float) -> dict[int, Place]:
    """In time and samples, of the batch sizes whose seeds all reached the target and have a time."""
    costs = {}
    for size, runs in by_size.items():
        seconds, samples = _known(runs, "seconds"), _known(runs, "samples")
        if seconds and samples:
            costs[size] = (seconds, samples)
    return pareto_places(costs, resolutions=(resolution, resolution)) if costs else {}


def _known(runs: Sequence[TargetRun], key: str) -> list[float]:
    """The values of all seeds; none if one is missing."""
    values = [getattr(run, key) for run in runs]
    return [] if any(value is None for value in values) else values


def _cost(optimizer: str, size: int, runs: list[TargetRun], place: Place | None) -> BatchCost:
    resolution = max(run.resolution for run in runs)
    known = {key: values for key in _COSTS if (values := _known(runs, key))}
    costs = {key: geometric_mean(values, resolution=resolution) for key, values in known.items()}
    at_target = {key: mean_interval(values) for key in _AT_TARGET if (values := _known(runs, key))}
    missed = [run for run in runs if run.steps is None]
    nearest = tuple(run.nearest for run in missed if run.nearest is not None)
    is_early = not missed and math.isinf(resolution)
    return BatchCost(optimizer, size, len(runs), len(missed), costs, at_target, place, nearest, is_early)


def cost_sentences(found: Sequence[BatchCost]) -> list[str]:
    """The front of each optimizer, which batch sizes missed the target, and what is not known."""
    lines = []
    for optimizer in dict.fromkeys(one.optimizer for one in found):
        own = [one for one in found if one.optimizer == optimizer]
        placed = [one for one in own if one.place is not None]
        if placed:
            fastest = min(placed, key=lambda one: one.costs["seconds"].value)
            least = min(placed, key=lambda one: one.costs["samples"].value)
            lines.append(
                f"{optimizer}: batch {fastest.batch_size:,} is the fastest, with {_text(fastest.costs['seconds'])} "
                f"seconds to the target; batch {least.batch_size:,} takes the fewest samples, "
                f"{_text(least.costs['samples'])}."
            )
            lines.append(f"{optimizer}: in time and samples, {_listed(placed)}.")
        elif any(one.costs for one in own):
            lines.append(f"{optimizer}: no run has times, so that steps and samples alone are known.")
        lines += [f"{optimizer}: {line}" for line in (_missed(own), _early(own)) if line]
    if any("seconds" in one.costs and "price" not in one.costs for one in found):
        lines.append(_NO_PRICE)
    return lines


def _missed(own: Sequence[BatchCost]) -> str:
    """Which batch sizes have no costs, and how near the seeds came that missed."""
    parts = []
    for one in own:
        if one.num_missed:
            ends = sorted({f"{min(one.nearest):.4g}", f"{max(one.nearest):.4g}"}) if one.nearest else []
            came = f", at best {' to '.join(ends)}" if ends else ""
            parts.append(f"batch {one.batch_size:,} ({one.num_missed} of {one.num_seeds} seeds{came})")
    return f"missed by {'; '.join(parts)}. A batch size with a seed that missed it has no costs." if parts else ""


def _early(own: Sequence[BatchCost]) -> str:
    sizes = [f"{one.batch_size:,}" for one in own if one.is_early]
    if not sizes:
        return ""
    return (
        f"a first evaluation had passed it already for batch {', '.join(sizes)}: steps are an upper bound there, "
        "without an interval. Evaluate more often (observers.evaluation.every), or name a target further on."
    )


def _listed(placed: Sequence[BatchCost]) -> str:
    """Batch sizes by their status."""
    parts = []
    for status in (FRONT, DOMINATED, UNDECIDED):
        sizes = [
            f"{one.batch_size:,}" + (f" (by {one.place.by:,})" if one.place.by is not None else "")
            for one in placed
            if one.place is not None and one.place.status == status
        ]
        if sizes:
            verb = "is" if len(sizes) == 1 else "are"
            parts.append(f"{'batch' if len(sizes) == 1 else 'batches'} {', '.join(sizes)} {verb} {status}")
    return "; ".join(parts)


def cost_table(found: Sequence[BatchCost], *, currency: str = "") -> Table:
    """A row per optimizer and batch size; columns of what is known for any."""
    keys = [key for key in _COSTS if key in ("steps", "samples") or any(key in one.costs for one in found)]
    ends = [key for key in _AT_TARGET if any(key in one.at_target for one in found)]
    names = {**_COSTS, "price": f"price, {currency}" if currency else "price"}
    headers = ("optimizer", "batch", *(names[key] for key in keys), *(_AT_TARGET[key] for key in ends), "time, samples")
    rows = []
    for one in found:
        cells = [_text(one.costs[key]) if key in one.costs else _missing(one) for key in keys]
        cells += [_text(one.at_target[key]) if key in one.at_target else "" for key in ends]
        rows.append((one.optimizer, f"{one.batch_size:,}", *cells, one.place.status if one.place else ""))
    return Table(
        "what a batch size takes to the target: geometric means over seeds, with 95 % intervals", headers, rows
    )


def _missing(one: BatchCost) -> str:
    return f"{one.num_missed} of {one.num_seeds} missed it" if one.num_missed else "not known"


def _text(one: Interval) -> str:
    """Value and interval as text.

    >>> _text(Interval(1234.5, 1000.0, 1500.0)), _text(Interval(0.25, math.nan, math.nan))
    ('1,234 (1,000 to 1,500)', '0.25')
    """
    value = _number(one.value)
    return value if math.isnan(one.low) else f"{value} ({_number(one.low)} to {_number(one.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cost_figures(found: Sequence[BatchCost]) -> list[Diagram]:
    """Time over the batch size, and time over samples, where times are known."""
    if not any("seconds" in one.costs for one in found):
        return []
    return [
        Diagram(
            "time_to_target", "Time to the target", Axis("batch size B", "samples", log=True),
            Axis("seconds", log=True), tuple(_lines(found, lambda one: float(one.batch_size))),
            "Steps times the time of a step; evaluations are not in it. Bands: 95 % over seeds.",
        ),
        Diagram(
            "time_against_samples", "What time costs in samples", Axis("samples to the target", log=True),
            Axis("seconds to the target", log=True), tuple(_lines(found, lambda one: one.costs["samples"].value)),
            "One point per batch size, the smallest at the end of its line. Rings: the seeds tell "
            "that no other batch size is better in both.",
        ),
    ]  # fmt: skip


def _lines(found: Sequence[BatchCost], x: Callable[[BatchCost], float]) -> list[Line]:
    lines = []
    for optimizer in dict.fromkeys(one.optimizer for one in found):
        own = [one for one in found if one.optimizer == optimizer and "seconds" in one.costs]
        if not own:
            continue
        values, low, high = interval_columns(one.costs["seconds"] for one in own)
        places: Numbers = [x(one) for one in own]
        lines.append(Line(optimizer, places, values, low, high, style="both", optimizer=optimizer))
        front = [one for one in own if one.place is not None and one.place.status == FRONT]
        if front:
            at = [x(one) for one in front]
            heights: Numbers = [one.costs["seconds"].value for one in front]
            lines.append(Line(f"{optimizer}: on the front", at, heights, style="rings", optimizer=optimizer))
    return lines


def cost_numbers(found: Sequence[BatchCost]) -> list[dict[str, Any]]:
    """Ready for a record."""
    return [dataclasses.asdict(one) for one in found]
