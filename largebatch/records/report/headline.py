"""The three numbers of the first screen: the best batch for the samples, the cost of the largest, and B_crit.

Each has its interval, or says what to run for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
from largebatch.diagnostics.intervals import Interval
from largebatch.records.report.batches import Difference, Quality, outcome, quality_of, worse_than_smallest
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.groups import Group
from largebatch.records.report.seeds import no_interval
from largebatch.records.report.studies import Fit, Study

_STUDY = "`largebatch study study.target.value=VALUE run.dir=runs/study`"
_TRAIN = "`largebatch train --multirun batch.total=SMALL,LARGE seed=0,1,2`"


@dataclass(frozen=True)
class Headline:
    """A number of the first screen.

    Attributes:
        title: the quantity.
        value: with its unit; empty: the evidence lacks it.
        interval: of the value, or why there is none.
        about: what it is of; without a value, what to run.
    """

    title: str
    value: str
    interval: str
    about: str


def headlines(studies: Sequence[Study], groups: Sequence[Group], evidence: Evidence) -> list[Headline]:
    """The three numbers, in their order."""
    study = studies[0] if studies else None
    return [_best_batch(study), _cost(groups, evidence), _b_crit(study, groups)]


def _best_batch(study: Study | None) -> Headline:
    """The batch size with the fewest samples to the target, and those that the seeds do not tell from it."""
    title = "Best batch for the samples"
    reached = [] if study is None else [
        (one.median[0] * one.batch_size, name, one)
        for name, points in study.measured.items() for one in points if not one.median[1]
    ]  # fmt: skip
    if not reached:
        return Headline(title, "", "", f"No study measured samples to a target. Run {_STUDY}.")
    samples, name, best = min(reached, key=lambda one: one[0])
    alike = sorted({one.batch_size for _, other, one in reached if other == name and _overlap(best, one)})
    if best.interval is None:
        interval = _few(best)
    elif len(alike) > 1:
        interval = f"{alike[0]:,} to {alike[-1]:,} cannot be told apart"
    else:
        interval = "no other batch is as cheap"
    ends = ""
    if best.interval is not None:
        low, high = (end * best.batch_size for end in best.interval)
        ends = f" ({'' if best.level >= 0.95 else 'range of seeds '}{low:,.0f} to {high:,.0f})"
    return Headline(
        title, f"batch {best.batch_size:,}", interval, f"{name}: {samples:,.0f} samples to the target{ends}"
    )


def _overlap(best: StepsToTarget, other: StepsToTarget) -> bool:
    if best is other:
        return True
    if best.interval is None or other.interval is None:
        return False
    return other.interval[0] * other.batch_size <= best.interval[1] * best.batch_size


def _few(one: StepsToTarget) -> str:
    return "not every seed reached the target: no interval" if one.censored else no_interval(one.num_replicates)


def _cost(groups: Sequence[Group], evidence: Evidence) -> Headline:
    """How much worse the largest batch ends than the smallest, of the optimizer that ends best there."""
    title = "Cost of the largest batch"
    found = [one for group in groups if (one := _cost_of(group)) is not None]
    if found:
        most = max(one.size for one in found)
        best = min((one for one in found if one.size == most), key=lambda one: one.end)
        return Headline(title, *best.texts())
    for record in evidence.of("comparison"):
        if texts := _compared(record.result.numbers):
            return Headline(title, *texts)
    return Headline(
        title, "", "", f"No runs of two batch sizes saw equally many samples. Run {_TRAIN}, then report again."
    )


@dataclass(frozen=True)
class _Cost:
    group: Group
    quality: Quality
    size: int
    found: Difference
    end: float  # at the largest batch; lower is better

    def texts(self) -> tuple[str, str, str]:
        change, is_share = self.found.change, self.quality.higher_is_better
        interval = cost_interval(change, is_share=is_share)
        if not self.found.over:
            interval = no_interval(self.found.seeds)
        elif self.found.over != "seeds":
            interval += " over validation samples; one seed"
        sizes = f"batch {self.size:,} against {next(iter(self.group.by_batch)):,}"
        return (
            cost_text(change.value, is_share=is_share),
            interval,
            f"{self.group.optimizer}: {self.quality.label} at {sizes}, at equal samples",
        )


def _cost_of(group: Group) -> _Cost | None:
    quality = quality_of(group)
    if quality is None or not group.is_comparable:
        return None
    compared = worse_than_smallest(group, quality)
    if not compared:
        return None
    size = max(compared)
    end = outcome(group.by_batch[size], quality)
    assert end is not None
    return _Cost(group, quality, size, compared[size], -end.value if quality.higher_is_better else end.value)


def _compared(numbers: object) -> tuple[str, str, str] | None:
    """The largest batch of `largebatch compare`, at equal samples."""
    if not isinstance(numbers, dict):
        return None
    gaps = [one for one in numbers.get("large_batch_gap") or [] if one.get("match") == "samples" and one.get("loss")]
    if not gaps:
        return None
    last = max(gaps, key=lambda one: int(one["global_batch_size"]))
    is_share = bool(last.get("accuracy"))
    one = last["accuracy"] if is_share else last["loss"]
    ends = [math.nan if one.get(key) is None else float(one[key]) for key in ("low", "high")]
    interval = cost_interval(Interval(float(one["value"]), *ends), is_share=is_share)
    what = f"validation {'accuracy' if is_share else 'loss'} of batch {last['global_batch_size']:,}"
    about = f"{what} against {numbers.get('base_batch_size'):,} at equal samples, by largebatch compare"
    return cost_text(float(one["value"]), is_share=is_share), interval, about


def cost_text(change: float, *, is_share: bool) -> str:
    """A cost with its unit; percentage points for accuracies, whose share of a share would be misread.

    >>> cost_text(0.05, is_share=True), cost_text(0.01, is_share=True), cost_text(-0.0123, is_share=False)
    ('5 points', '1 point', '-0.0123 in loss')
    """
    text = f"{100 * change:.2g}"
    return f"{text} point{'s' * (text not in ('1', '-1'))}" if is_share else f"{change:.3g} in loss"


def cost_interval(change: Interval, *, is_share: bool) -> str:
    """Its 95 % interval.

    >>> cost_interval(Interval(0.05, 0.041, 0.059), is_share=True)
    '95 %: 4.1 to 5.9'
    """
    if math.isnan(change.low):
        return "no interval"
    factor, within = (100 if is_share else 1), change.low <= 0 <= change.high
    return f"95 %: {factor * change.low:.2g} to {factor * change.high:.2g}{', within the noise' * within}"


def _b_crit(study: Study | None, groups: Sequence[Group]) -> Headline:
    """Of a supported fit; where there are several, of the optimizer with the fewest steps at the largest batch."""
    title = "Critical batch size B_crit"
    if study is None:
        scales = [one for group in groups if (one := group.noise_scale) is not None]
        hint = (
            f" The noise scale, {scales[0][0].value:,.0f} samples, is its order of magnitude at most." if scales else ""
        )
        return Headline(title, "", "", f"No study fitted it. Run {_STUDY}.{hint}")
    supported = [fit for fit in study.fits if fit.is_supported]
    others = [fit for fit in study.fits if not fit.is_supported]
    if not supported:
        reasons = "; ".join(f"{fit.optimizer} {_estimate(fit)}" for fit in others if fit.b_crit is not None)
        fits = f" Fits without support: {reasons}." if reasons else ""
        return Headline(title, "", "", f"Not supported by the study's points.{fits} Add batch sizes or seeds.")
    best = min(supported, key=lambda fit: _last_steps(study, fit.optimizer))
    assert best.b_crit is not None
    about = f"{best.optimizer}: {best.verdict}"
    more = [f"{fit.optimizer} {_estimate(fit)}" for fit in supported if fit is not best]
    more += [f"{' and '.join(fit.optimizer for fit in others)} not supported"] if others else []
    about += f". Also {', '.join(more)}" if more else ""
    low, high = _number(best.b_crit.low), _number(best.b_crit.high)
    return Headline(title, f"{_number(best.b_crit.value)} samples", f"95 %: {low} to {high}", about)


def _last_steps(study: Study, optimizer: str) -> tuple[int, float]:
    points = study.measured.get(optimizer) or []
    return (-points[-1].batch_size, points[-1].median[0]) if points else (0, math.inf)


def _estimate(fit: Fit) -> str:
    assert fit.b_crit is not None
    one = fit.b_crit
    return f"{_number(one.value)} ({_number(one.low)} to {_number(one.high)})"


def _number(value: float) -> str:
    if math.isinf(value):
        return "unbounded"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
