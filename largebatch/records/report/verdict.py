"""The verdict of a report in sentences: who wins, what a large batch costs, how large it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.diagnostics.critical_batch.fewest_steps import fewest_steps
from largebatch.diagnostics.intervals import Interval
from largebatch.records.report.batches import LOSS, Difference, Quality, outcome, quality_of, worse_than_smallest
from largebatch.records.report.evidence import Evidence, RunRecord
from largebatch.records.report.groups import Group, num_seeds
from largebatch.records.report.seeds import no_interval
from largebatch.records.report.studies import Study
from largebatch.records.result import FILES


def verdict(evidence: Evidence, groups: Sequence[Group], studies: Sequence[Study]) -> list[str]:
    """Sentences: who needs the fewest steps, the cost of each optimizer's largest batch, the noise scale."""
    sentences = fewest_steps(studies[0].measured) if studies else []
    for experiment in dict.fromkeys(group.experiment for group in groups):
        sentences += _of_experiment([group for group in groups if group.experiment == experiment])
    sentences += _of_noise(groups)
    if sentences or others(evidence, studies):
        return sentences
    return ["There is no run with an evaluation, and no study: nothing can be said about batch sizes."]


def others(evidence: Evidence, studies: Sequence[Study]) -> list[str]:
    """Every other result in its first sentence."""
    told = studies[0].name if studies and len(studies[0].measured) > 1 else None
    kinds = dict.fromkeys(kind for kind, _ in FILES.values())  # two files may be of one kind
    records = [one for kind in kinds for one in evidence.of(kind) if not (kind == "study" and one.name == told)]
    return [f"{one.result.title}: {one.result.sentences[0]}" for one in records if one.result.sentences]


def of_batches(group: Group) -> list[str]:
    """How batch sizes end: the smallest, then each against it, the largest last."""
    quality = quality_of(group)
    if quality is None or group.study:
        return []
    smallest, *larger = group.by_batch
    base = outcome(group.by_batch[smallest], quality)
    if base is None:
        return []
    if larger and not group.is_comparable:
        least, most = group.samples_seen
        return [
            f"{group.name}: final values do not compare batch sizes here, because the runs saw {least:,} to {most:,} "
            "samples. `largebatch compare` matches them at equal samples, steps or training loss."
        ]
    value = f"{_number(base.value)}{_interval(base, group.by_batch[smallest])}"
    start = f"{group.name}: {quality.label} at batch {smallest:,} is {value}."
    compared = worse_than_smallest(group, quality)
    if not compared:
        missing = "no other batch size" if not larger else "no other batch size with an evaluation"
        return [f"{start} There is {missing} to compare with."]
    return [start, *(f"{group.name}: {_compared(size, one, quality)}." for size, one in compared.items())]


def _compared(size: int, found: Difference, quality: Quality) -> str:
    # Percentage points for accuracies: a share of a share would be misread.
    factor, unit = (100, " points") if quality.higher_is_better else (1, "")
    value, low, high = (factor * end for end in (found.change.value, found.change.low, found.change.high))
    change = f"batch {size:,} ends {abs(value):.3g}{unit} {'worse' if value > 0 else 'better'} than the smallest"
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


def _of_experiment(groups: Sequence[Group]) -> list[str]:
    """The cost of the largest batch: of several optimizers in one sentence, if they ended alike."""
    found = {group: lines for group in groups if (lines := of_batches(group))}
    ends = {(next(iter(group.by_batch)), *group.by_batch) for group in found}
    qualities = {quality for group in found if (quality := quality_of(group))}
    costs = {
        group: list(worse_than_smallest(group, quality_of(group) or LOSS).values()) for group in found
        if group.is_comparable
    }  # fmt: skip
    if len(found) < 2 or len(ends) > 1 or len(qualities) > 1 or not all(costs.get(group) for group in found):
        several = [group for group in found if len(group.by_batch) > 1]
        return [found[group][-1] for group in several or found]
    (quality,), (sizes,) = qualities, ends
    parts = sorted(((cost[-1], group.optimizer) for group, cost in costs.items()), key=lambda one: one[0].change.value)
    told = "; ".join(f"{name} {_cost(cost, quality)}" for cost, name in parts)
    where = f"batch {sizes[-1]:,} against {sizes[0]:,}, at equal samples (of intervals, positive is worse)"
    return [f"{groups[0].experiment}: {quality.label} at {where}: {told}."]


def _cost(found: Difference, quality: Quality) -> str:
    change, is_share = found.change, quality.higher_is_better
    factor, unit = (100, " points") if is_share else (1, "")
    value = f"{abs(factor * change.value):.3g}{unit} {'worse' if change.value > 0 else 'better'}"
    if not found.over:
        return f"{value} ({no_interval(found.seeds)})"
    over = "" if found.over == "seeds" else " over validation samples, one seed"
    ends = f"95 %{over}: {_signed(factor * change.low)} to {_signed(factor * change.high)}"
    return f"{value} ({ends}{', within the noise' if change.low <= 0 <= change.high else ''})"


def _of_noise(groups: Sequence[Group]) -> list[str]:
    """Of every optimizer in one sentence; runs to a full length before those that a study's target ended."""
    found = {group.optimizer: scale for group in reversed(groups) if (scale := group.noise_scale) is not None}
    if not found:
        return []
    parts = [
        f"{optimizer} {scale.value:,.0f} (95 %: {scale.low:,.0f} to {scale.high:,.0f}; batch {size:,}"
        f"{f', median of {count} runs' * (count > 1)})"
        for optimizer, (scale, size, count) in reversed(found.items())
    ]
    return [f"Gradient noise scale at the end of training, in samples: {', '.join(parts)}."]


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
