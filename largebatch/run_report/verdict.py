"""What the evidence says in sentences, and what it does not support."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from largebatch.diagnostics.bootstrap import Interval
from largebatch.run_report.batches import Group, Quality, outcome, quality_of, worse_than_smallest
from largebatch.run_report.records import Evidence, differing
from largebatch.trackers.series import of_gap

_NOT_FINISHED = ("diverged", "stopped", "unfinished")
_EQUAL = 1.05  # budgets that differ by less count as equal


def verdict(evidence: Evidence, groups: Sequence[Group]) -> list[str]:
    """Sentences: how batch sizes compare, noise scale, critical batch size."""
    said = [line for group in groups for line in (_of_batches(group), _of_noise(group)) if line]
    for study in evidence.of("study"):
        conclusions = [str(line) for line in study.values.get("conclusions") or ()]
        said += conclusions or [line for fit in study.values.get("fits") or () if (line := _of_fit(fit))]
    said += [
        f"{told['title']}: {first_sentence(told['answer'])}"
        for one in evidence.of("chapter")
        if (told := one.values).get("answer")
    ]
    return said or ["There is no run with an evaluation, and no study: nothing can be said about batch sizes."]


def first_sentence(text: str) -> str:
    """Of an answer; its section has the whole.

    >>> first_sentence("The slope is -1.008 (95 %: -1.046 to -0.969). The law holds.")
    'The slope is -1.008 (95 %: -1.046 to -0.969).'
    """
    end = re.search(r"\.(?=\s+[A-Z])", text)
    return text if end is None else text[: end.end()]


def caveats(evidence: Evidence, groups: Sequence[Group]) -> list[str]:
    """What weakens the sentences of the verdict, or is missing for more."""
    lines = [line for group in groups for line in _caveats_of(group)]
    if not evidence.of("study") and (evidence.runs or not evidence.records):
        lines.append(
            "No study is among the folders: steps to a target and the critical batch size are not measured. "
            "`largebatch study` does."
        )
    if evidence.num_trials:
        lines.append(
            f"{evidence.num_trials:,} runs below a study are settings that it tried and did not choose: left out."
        )
    return lines


def _of_batches(group: Group) -> str:
    quality = quality_of(group)
    if quality is None:
        return ""
    smallest, *others = group.by_batch
    base = outcome(group.by_batch[smallest], quality)
    if base is None:
        return ""
    seen = [run.samples_seen for run in group.runs]
    if others and max(seen) > _EQUAL * min(seen):
        return (
            f"{group.name}: the runs saw {min(seen):,} to {max(seen):,} samples: where they end says as much about "
            "that as about the batch size. `largebatch compare` matches them at equal samples, steps or training loss."
        )
    start = f"{group.name}: {quality.label} at batch {smallest:,} is {_number(base.value)}{_interval(base)}"
    compared = worse_than_smallest(group, quality)
    if not compared:
        missing = "no other batch size" if not others else "no other batch size with an evaluation"
        return f"{start}; there is {missing} to compare with."
    parts = [_compared(size, one, quality) for size, one in compared.items()]
    return f"{start}. Against that, {'; '.join(parts)}."


def _compared(size: int, one: Interval, quality: Quality) -> str:
    # Percentage points for accuracies: a share of a share would be misread.
    factor, unit = (100, " points") if quality.higher_is_better else (1, "")
    value, low, high = (factor * end for end in (one.value, one.low, one.high))
    change = f"batch {size:,} ends {abs(value):.3g}{unit} {'worse' if value > 0 else 'better'}"
    if math.isnan(low):
        return f"{change}, which one run each cannot tell from noise"
    told = f"95 %: {_signed(low)} to {_signed(high)}, positive is worse"
    if low > 0:
        return f"{change} ({told}): more than noise"
    if high < 0:
        return f"{change} ({told}): better by more than noise"
    return f"{change} ({told}): within the noise"


def _of_noise(group: Group) -> str:
    """Of the run with the smallest batch that knows it: there it is best measured."""
    for run in group.runs:
        value, low, high = (run.last(f"noise_scale/{key}") for key in ("value", "low", "high"))
        if value is not None and low is not None and high is not None:
            return (
                f"{group.name}: at the end of {run.name} the gradient noise scale is {value:,.0f} samples "
                f"(95 %: {low:,.0f} to {high:,.0f}); batches of several times as many waste samples, if the model "
                "behind it holds."
            )
    return ""


def _of_fit(fit: dict[str, Any]) -> str:
    critical = fit.get("b_crit")
    name = fit.get("optimizer", "the optimizer")
    if not fit.get("supported", True) or not isinstance(critical, dict) or critical.get("value") is None:
        told = [fit["verdict"]] if fit.get("verdict") else fit.get("warnings") or ()
        reason = "; ".join(map(str, told)) or "the fit is not supported by the points"
        return f"The study does not support a critical batch size of {name}: {reason}."
    low, high = critical.get("low"), critical.get("high")
    ends = f" (95 %: {low:,.0f} to {high:,.0f})" if low is not None and high is not None else ", interval unknown"
    return f"The critical batch size of {name} is {critical['value']:,.0f} samples{ends}, by the study's fit."


def _caveats_of(group: Group) -> list[str]:
    lines = []
    if single := [size for size, runs in group.by_batch.items() if len(runs) == 1]:
        lines.append(
            f"{group.name}: one run at {_listed(single)}: its interval covers the validation samples, not the seed. "
            "Add seeds."
        )
    if keys := differing(group.runs):
        lines.append(f"{group.name}: besides the batch, the runs differ in {', '.join(keys)}.")
    if augmented := [run.name for run in group.runs if of_gap(run.rows)]:
        named = ", ".join(augmented[:5]) + (" ..." if len(augmented) > 5 else "")
        lines.append(f"{group.name}: a data set of {named} augments by itself, and so one side of the gap.")
    by_status = {one: [run.name for run in group.runs if run.status == one] for one in _NOT_FINISHED}
    return lines + [
        f"{group.name}: {status}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}."
        for status, names in by_status.items()
        if names
    ]


def _listed(sizes: Sequence[int]) -> str:
    shown = ", ".join(f"{size:,}" for size in sizes[:6])
    return f"batch {shown}{' ...' if len(sizes) > 6 else ''}"


def _interval(one: Interval) -> str:
    return "" if math.isnan(one.low) else f" (95 %: {_number(one.low)} to {_number(one.high)})"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}"
