"""The verdict of a report in sentences, and its caveats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.diagnostics.intervals import Interval
from largebatch.records.report.batches import (
    Difference,
    Group,
    Quality,
    num_seeds,
    outcome,
    quality_of,
    worse_than_smallest,
)
from largebatch.records.report.evidence import Evidence, RunRecord, differing
from largebatch.records.report.seeds import by_seed, furthest, merge_notes, no_interval
from largebatch.records.result import FILES

_NOT_FINISHED = ("diverged", "stopped", "unfinished")
_EQUAL = 1.05  # budgets that differ by less count as equal


def verdict(evidence: Evidence, groups: Sequence[Group]) -> list[str]:
    """Sentences: how batch sizes compare, noise scale, critical batch size."""
    sentences = [line for group in groups for line in (*_of_batches(group), *_of_noise(group))]
    kinds = dict.fromkeys(kind for kind, _ in FILES.values())  # two files may be of one kind
    results = [one.result for kind in kinds for one in evidence.of(kind)]
    sentences += [f"{one.title}: {one.sentences[0]}" for one in results if one.sentences]
    return sentences or ["There is no run with an evaluation, and no study: nothing can be said about batch sizes."]


def caveats(evidence: Evidence, groups: Sequence[Group]) -> list[str]:
    """The weaknesses of the verdict, and missing evidence."""
    lines = [line for group in groups for line in _caveats_of(group)]
    if not evidence.of("study") and (evidence.runs or not evidence.records):
        lines.append(
            "No study is among the folders: steps to a target and the critical batch size are not measured. "
            "`largebatch study` measures them."
        )
    if evidence.num_trials:
        lines.append(
            f"{evidence.num_trials:,} runs below a study are left out: it tried their settings and did not choose them."
        )
    return lines


def _of_batches(group: Group) -> list[str]:
    quality = quality_of(group)
    if quality is None:
        return []
    smallest, *others = group.by_batch
    base = outcome(group.by_batch[smallest], quality)
    if base is None:
        return []
    # Of a seed that was run again only those runs count that reached furthest.
    seen = [run.samples_seen for runs in group.by_batch.values() for one in by_seed(runs) for run in furthest(one)]
    if others and max(seen) > _EQUAL * min(seen):
        return [
            f"{group.name}: final values do not compare batch sizes here, because the runs saw {min(seen):,} to "
            f"{max(seen):,} samples. `largebatch compare` matches them at equal samples, steps or training loss."
        ]
    value = f"{_number(base.value)}{_interval(base, group.by_batch[smallest])}"
    start = f"{group.name}: {quality.label} at batch {smallest:,} is {value}."
    compared = worse_than_smallest(group, quality)
    if not compared:
        missing = "no other batch size" if not others else "no other batch size with an evaluation"
        return [f"{start} There is {missing} to compare with."]
    return [start, *(f"{group.name}: {_compared(size, one, quality)}." for size, one in compared.items())]


def _compared(size: int, found: Difference, quality: Quality) -> str:
    # Percentage points for accuracies: a share of a share would be misread.
    factor, unit = (100, " points") if quality.higher_is_better else (1, "")
    value, low, high = (factor * end for end in (found.change.value, found.change.low, found.change.high))
    change = f"batch {size:,} ends {abs(value):.3g}{unit} {'worse' if value > 0 else 'better'}"
    if not found.over:
        return f"{change} ({no_interval(found.seeds)}): that cannot be told from noise"
    if found.over != "seeds":
        interval = f"95 % over validation samples: {_signed(low)} to {_signed(high)}, positive is worse"
        size_of_it = "within" if low <= 0 <= high else "more than"
        return f"{change} ({interval}): {size_of_it} their noise. One seed says nothing about the noise of seeds"
    interval = f"95 %: {_signed(low)} to {_signed(high)}, positive is worse"
    if low > 0:
        return f"{change} ({interval}): more than noise"
    if high < 0:
        return f"{change} ({interval}): better by more than noise"
    return f"{change} ({interval}): within the noise"


def _of_noise(group: Group) -> list[str]:
    """The noise scale of the smallest batch that has one: there it is measured best."""
    for run in group.runs:
        if scale := run.noise_scale:
            return [
                f"{group.name}: the gradient noise scale is {scale.value:,.0f} samples (95 %: {scale.low:,.0f} to "
                f"{scale.high:,.0f}) at the end of {run.name}. By its model, batches of several times that size waste "
                "samples."
            ]
    return []


def _caveats_of(group: Group) -> list[str]:
    lines = []
    if single := [size for size, runs in group.by_batch.items() if num_seeds(runs) == 1]:
        lines.append(
            f"{group.name}: one seed at {_listed(single)}: its interval covers the validation samples, not the seed. "
            "Add seeds."
        )
    quality = quality_of(group)
    lines += [
        f"{group.name}, batch {size:,}: {clause}."
        for size, runs in group.by_batch.items()
        for clause in merge_notes(runs, quality.key if quality else None)
    ]
    if keys := differing([run.settings for run in group.runs]):
        lines.append(f"{group.name}: besides the batch, the runs differ in {', '.join(keys)}.")
    if augmented := [run.name for run in group.runs if run.is_gap_augmented]:
        named = ", ".join(augmented[:5]) + (" ..." if len(augmented) > 5 else "")
        lines.append(f"{group.name}: a data set of {named} augments by itself: one side of the gap is augmented.")
    by_status = {one: [run.name for run in group.runs if run.status == one] for one in _NOT_FINISHED}
    return lines + [
        f"{group.name}: {status}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}."
        for status, names in by_status.items()
        if names
    ]


def _listed(sizes: Sequence[int]) -> str:
    shown = ", ".join(f"{size:,}" for size in sizes[:6])
    return f"batch {shown}{' ...' if len(sizes) > 6 else ''}"


def _interval(one: Interval, runs: Sequence[RunRecord]) -> str:
    seeds = num_seeds([run for run in runs if run.status != "diverged"])
    if math.isnan(one.low):
        return f" ({no_interval(seeds)})"
    over = " over validation samples" if seeds == 1 else ""
    return f" (95 %{over}: {_number(one.low)} to {_number(one.high)})"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}"
