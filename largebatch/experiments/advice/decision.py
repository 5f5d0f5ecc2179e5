"""The flow chart with a measurement behind each branch, for the planned batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from largebatch.experiments.advice.assessment import PREDICTED, Assessment
from largebatch.experiments.advice.commands import command_for, sharper
from largebatch.experiments.advice.questions import (
    COMMUNICATION,
    GAP,
    MEMORY,
    NOISE,
    QUESTIONS,
    RATE,
    REACHED,
    Question,
)
from largebatch.records.report.estimates import NONE, Estimate
from largebatch.records.report.explorer import interval_text, value_text
from largebatch.records.report.headline import cost_interval, cost_text

YES, NO, OPEN, UNMEASURED = "yes", "no", "cannot be told", "not measured"
SMALL_SHARE = 0.1  # of a step, which communication may take before it counts
_NEAR = 2  # a rate within this factor of a suggestion counts as tuned: a range test tells no finer
_AT_FULL_SPEED = 1.8  # times as long: a step with twice the batch, where devices are busy


@dataclass(frozen=True)
class Finding:
    """What the evidence says to a question.

    Attributes:
        taken: `yes`, `no`, `cannot be told` or `not measured`.
        measured: the number with its interval; empty: there is none.
        source: what it rests on.
        estimate: the number for programs; None: it is no single one.
    """

    taken: str
    measured: str = ""
    source: str = ""
    estimate: Estimate | None = None


@dataclass(frozen=True)
class Branch:
    """A question of the chart, what was found, and where that leads.

    Attributes:
        then: what to do; empty: go on.
        command: that would measure it; empty: it is measured.
    """

    question: Question
    text: str
    finding: Finding
    then: str = ""
    command: str = ""

    def record(self) -> dict[str, Any]:
        """Plain values."""
        one = self.finding.estimate
        numbers = None if one is None else {"value": one.value, "low": one.low, "high": one.high, "kind": one.kind}
        return {
            "key": self.question.key,
            "question": self.text,
            "taken": self.finding.taken,
            "measured": self.finding.measured,
            "numbers": numbers,
            "source": self.finding.source,
            "then": self.then,
            "command": self.command,
        }


def branches(found: Assessment) -> list[Branch]:
    """Every question of the chart, in its order."""
    look = {MEMORY: _memory, NOISE: _noise, REACHED: _reached, COMMUNICATION: _communication, RATE: _rate, GAP: _gap}
    return [_branch(found, question, look[question.key](found)) for question in QUESTIONS]


def _branch(found: Assessment, question: Question, finding: Finding) -> Branch:
    planned = found.planned
    then = question.otherwise if finding.taken == NO else ""
    if finding.taken == NO and question.repeats:
        then += " Then ask again."
    command = ""
    if finding.taken in (UNMEASURED, OPEN):
        smallest = min(found.sizes)
        sizes = (smallest, planned.batch) if smallest < planned.batch else (planned.batch, max(found.sizes))
        command = sharper(found) if question.key == REACHED else command_for(question.answered_by, planned, sizes)
    return Branch(question, question.text(planned.batch), finding, then, command)


def number(one: Estimate, unit: str) -> str:
    """A value with its interval, or that there is none.

    >>> number(Estimate(1.0, 0.5, 2.0), "s"), number(Estimate(3.0), "GiB")
    ('1 s (500 ms to 2 s)', '3 GiB (no interval)')
    """
    interval = interval_text(one, unit)
    return f"{value_text(one, unit)} ({'no interval' if interval == 'unknown' else interval})"


def _memory(found: Assessment) -> Finding:
    one, quantity = found.at("memory", found.planned.batch), found.quantities["memory"]
    if one.kind == NONE:
        return Finding(UNMEASURED, source=quantity.source.removeprefix(f"{UNMEASURED}: "))
    text, memory = number(one, "GiB"), found.planned.memory
    if one.kind != PREDICTED:
        micro = min(math.ceil(found.planned.batch / found.planned.world_size), found.planned.max_micro)
        most = max(run.micro_batch_size or 1 for run in found.group.runs)
        if micro > most:
            return Finding(OPEN, f"{text}: no run had more than {most:,} of the {micro:,} samples at once",
                           quantity.source, one)  # fmt: skip
        return Finding(YES, f"{text}: runs with as many samples at once did", quantity.source, one)
    if memory is None or memory.fits is None or memory.budget is None:
        return Finding(OPEN, f"{text}; of how much, plan.memory=AMOUNT would say", quantity.source, one)
    taken = YES if memory.fits >= memory.micro_batch_size else NO
    return Finding(taken, f"{text} of {memory.budget / 2**30:.3g} GiB", quantity.source, one)


def _noise(found: Assessment) -> Finding:
    noise = next((one for one in found.critical if one.is_noise), None)
    if noise is None:
        return Finding(UNMEASURED, source=found.quantities["relative_noise"].source)
    amount = noise.amount
    one = Estimate(amount.value, amount.low, amount.high)
    return Finding(YES, number(one, "samples"), noise.source, one)


def _reached(found: Assessment) -> Finding:
    """The batch against the best evidence of the critical batch, and a step with twice the batch against this one."""
    batch = found.planned.batch
    doubled = _doubled(found)
    busy = f"; a step with twice the batch takes {doubled:.3g} times as long" if doubled is not None else ""
    if not found.critical:
        if doubled is not None and doubled >= _AT_FULL_SPEED:
            return Finding(YES, f"the devices are at full speed{busy}", found.quantities["step_time"].source)
        return Finding(UNMEASURED, source="no critical batch and no noise scale is known")
    best = found.critical[0]
    amount = best.amount
    share = Estimate(
        batch / amount.value,
        batch / amount.high,
        batch / amount.low if amount.low else None,
    )
    ends = f"{batch / amount.high:.3g} to {f'{batch / amount.low:.3g}' if amount.low else 'unbounded'}"
    text = f"{batch:,} is {batch / amount.value:.3g} times the {best.kind} ({ends}){busy}"
    if batch >= amount.high or (doubled is not None and doubled >= _AT_FULL_SPEED):
        taken = YES
    else:
        taken = NO if batch <= amount.low else OPEN
    return Finding(taken, text, best.source, share)


def _doubled(found: Assessment) -> float | None:
    """How many times as long a step with twice the batch takes, by two measured sizes; None: they do not tell."""
    one, twice = (found.at("step_time", size) for size in (found.planned.batch, 2 * found.planned.batch))
    sizes = {run.global_batch_size for run in found.group.runs if run.step_s}
    if one.value is None or twice.value is None or len(sizes) < 2 or one.is_too_wide or twice.is_too_wide:
        return None
    return twice.value / one.value


def _communication(found: Assessment) -> Finding:
    ranks = found.planned.world_size
    if ranks == 1:
        return Finding(
            YES, "0: one process sends nothing", "the plan's number of processes", Estimate(0.0, kind="exact")
        )
    for record in found.evidence.of("communication"):
        medians = record.result.numbers.get("medians")
        share = medians.get("share") if isinstance(medians, dict) else None
        ends = [_known(share.get(end)) for end in ("value", "low", "high")] if isinstance(share, dict) else [None]
        if None not in ends:
            value, low, high = (100 * (end or 0.0) for end in ends)
            one = Estimate(value / 100, low / 100, high / 100, "measured")
            text, measured = f"{value:.3g} % of a step ({low:.3g} to {high:.3g})", record.result.numbers.get("ranks")
            is_of_plan = measured in (None, ranks)
            text += "" if is_of_plan else f" on {measured} processes, and the plan has {ranks}"
            taken = _below(one, SMALL_SHARE) if is_of_plan else OPEN
            return Finding(taken, text, f"measure communication in {record.name}", one)
    exposed, step = (found.at(key, found.planned.batch) for key in ("exposed_communication", "step_time"))
    if exposed.value is None or not step.value:
        known = found.quantities["exposed_communication"].source if found.group.runs else "no run of it is known"
        return Finding(UNMEASURED, source=known)
    ends = [None if end is None else end / step.value for end in (exposed.low, exposed.high)]
    one = Estimate(exposed.value / step.value, ends[0], ends[1], exposed.kind)
    quantity = found.quantities["exposed_communication"]
    text = f"{number(exposed, 's')} exposed, {100 * (one.value or 0):.3g} % of a step"
    return Finding(_below(one, SMALL_SHARE), text, quantity.source, one)


def _below(one: Estimate, bound: float) -> str:
    low, high = (one.value if end is None else end for end in (one.low, one.high))
    if low is None or high is None:
        return UNMEASURED
    return YES if high <= bound else NO if low > bound else OPEN


def _rate(found: Assessment) -> Finding:
    """A range test at this batch, or a study, which tunes every batch."""
    planned = found.planned
    for record in found.evidence.of("find_lr"):
        for numbers in record.result.numbers.get("map") or [record.result.numbers]:
            one = _suggestion(numbers, planned.batch)
            if one is None or not one.value:
                continue
            low, high = (one.value if end is None else end for end in (one.low, one.high))
            taken = YES if low / _NEAR <= planned.peak_lr <= _NEAR * high else NO
            text = f"the plan's peak is {planned.peak_lr:.3g}, the suggestion {number(one, '')}"
            return Finding(taken, text, f"find-lr in {record.name}; yes within a factor of {_NEAR}", one)
    if any(run.study and run.global_batch_size == planned.batch for run in found.group.runs):
        return Finding(YES, "the study's best setting of this batch", found.group.study or "a study")
    return Finding(UNMEASURED, source=f"no range test and no study at batch {planned.batch:,}")


def _suggestion(numbers: object, batch: int) -> Estimate | None:
    """The rate that a range test at this batch suggests; None if it does not, or was at another one."""
    lr = numbers.get("suggestion") if isinstance(numbers, dict) else None
    if not isinstance(numbers, dict) or not isinstance(lr, dict) or numbers.get("batch_size") != batch:
        return None
    value, low, high = (_known(lr.get(key)) for key in ("lr", "low", "high"))
    return Estimate(value, low, high, "measured")


def _known(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _gap(found: Assessment) -> Finding:
    """Whether the batch, or the nearest larger one that was measured, ends worse than the smallest."""
    size = next((size for size in sorted(found.worse) if size >= found.planned.batch), None)
    if size is None or found.quality is None:
        return Finding(UNMEASURED, source="no runs of this batch and a smaller one saw equally many samples")
    difference, is_share = found.worse[size], found.quality.higher_is_better
    change = difference.change
    text = f"{found.quality.label} of batch {size:,} against {found.smallest_compared:,}: worse by "
    text += f"{cost_text(change.value, is_share=is_share)} ({cost_interval(change, is_share=is_share)})"
    low, high = (None if math.isnan(end) else end for end in (change.low, change.high))
    one = Estimate(change.value, low, high, "measured")
    over = f"the ends of runs, over {difference.over}" if difference.over else "the ends of runs"
    source = f"{over}, {difference.seeds} seed{'s' * (difference.seeds != 1)}"
    if low is None or difference.over != "seeds":
        return Finding(OPEN, text, source, one)
    return Finding(NO if low > 0 else YES, text, source, one)
