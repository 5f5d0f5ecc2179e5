"""How runs end at each batch size, as a table: the value with its interval, and how much worse than the smallest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.diagnostics.intervals import Interval
from largebatch.records.report import html_parts
from largebatch.records.report.batches import Quality, outcome, quality_of, worse_than_smallest
from largebatch.records.report.groups import Group, num_seeds
from largebatch.records.report.headline import cost_interval, cost_text
from largebatch.records.report.seeds import no_interval
from largebatch.records.report.verdict import of_batches

_CAPTION = (
    "Intervals of three seeds or more are Student's over seeds; of one seed they cover the validation samples alone."
)


def batch_table(groups: Sequence[Group]) -> str:
    """Optimizers of one experiment, a table for each quality; where budgets differ, a sentence says so instead."""
    lines = [line for group in groups if not group.is_comparable for line in of_batches(group)]
    shown = ""
    for quality in dict.fromkeys(quality for group in groups if (quality := quality_of(group)) is not None):
        alike = [group for group in groups if group.is_comparable and quality_of(group) == quality]
        rows = [(group, size, row) for group in alike for size, row in _rows(group, quality)]
        attributes = [
            html_parts.filterable(experiment=group.experiment, optimizer=group.optimizer, batch=size)
            for group, size, _ in rows
        ]
        headers = ("optimizer", "batch", "seeds", quality.label, "95 %", "worse than the smallest by", "95 % of that")
        cells = [row for _, _, row in rows]
        shown += html_parts.table(headers, cells, caption=_CAPTION, attributes=attributes) if rows else ""
    return html_parts.bullets(lines) + shown


def _rows(group: Group, quality: Quality) -> list[tuple[int, tuple[str, ...]]]:
    costs = worse_than_smallest(group, quality)
    found: list[tuple[int, tuple[str, ...]]] = []
    for size, runs in group.by_batch.items():
        end, cost, seeds = outcome(runs, quality), costs.get(size), num_seeds(runs)
        value, between, change, of_change = "diverged", "", "", ""
        if end is not None:
            value = f"{end.value:.4g}"
            between = no_interval(seeds) if math.isnan(end.low) else f"{end.low:.4g} to {end.high:.4g}"
        if cost is not None:
            change = cost_text(cost.change.value, is_share=quality.higher_is_better)
            of_change = _ends(cost.change, cost.seeds, is_share=quality.higher_is_better)
        found.append((size, (group.optimizer, f"{size:,}", str(seeds), value, between, change, of_change)))
    return found


def _ends(change: Interval, seeds: int, *, is_share: bool) -> str:
    if math.isnan(change.low):
        return no_interval(seeds)
    return cost_interval(change, is_share=is_share).removeprefix("95 %: ")
