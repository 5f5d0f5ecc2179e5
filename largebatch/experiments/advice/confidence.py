"""How sure the answer is: what it rests on, what would change it, and the cheapest next measurement."""

from __future__ import annotations

import shlex

from largebatch.experiments.advice.assessment import Assessment
from largebatch.experiments.advice.costs import span
from largebatch.experiments.advice.decision import GAP, OPEN, UNMEASURED, Branch
from largebatch.experiments.advice.mid_run_branches import NUM_STEPS
from largebatch.experiments.advice.questions import COMMUNICATION, NOISE, QUESTIONS, RATE
from largebatch.records.graded_runs import LABELS, calibration_of
from largebatch.records.report.estimates import EXTRAPOLATED, kind_of

_BRANCHED = "advise.critical_batch=true"
_STUDY = "largebatch study study.target.value=VALUE run.dir=runs/study"


def how_sure(found: Assessment, chart: list[Branch]) -> str:
    """What the answer rests on, what would change it, and the cheapest next measurement."""
    parts = [_rests_on(found), _graded(found)]
    if gaps := [one.question.key for one in chart if one.finding.taken in (UNMEASURED, OPEN)]:
        words = {NOISE: "the noise scale", COMMUNICATION: "communication", RATE: "the learning rate", GAP: "the gap"}
        if named := [words[key] for key in gaps if key in words]:
            parts.append(f"not settled: {', '.join(named)}")
    parts.append(next_measurement(found, chart))
    return f"How sure: {'; '.join(parts)}."


def _rests_on(found: Assessment) -> str:
    if not found.critical:
        return f"{_runs(found)} no critical batch"
    best = found.critical[0]
    how = "a noise scale, not a measurement of it" if best.is_noise else "measured"
    text = f"the critical batch is {'bounded on one side' if best.bound else how}"
    value = round(best.amount.value)
    if best.sizes and kind_of(value, best.sizes) == EXTRAPOLATED:
        low, high = best.sizes[0], best.sizes[-1]
        text += f", and lies outside the batches that it was measured at, {low:,}" + (
            f" to {high:,}" if high > low else ""
        )
    if others := found.critical[1:]:
        text += f"; the {others[0].kind} says {others[0].amount.value:,.0f} ({span(others[0].amount)})"
    return text


def _graded(found: Assessment) -> str:
    """How the predictions did that these runs made of their own time and memory before they began."""
    graded = calibration_of(run.summary for run in found.group.runs)
    if not graded:
        return "no prediction of this task was graded yet"
    one = max(graded, key=lambda each: each.median_error)
    held, count = sum(each.inside for each in graded), sum(each.number for each in graded)
    worst = f"the worst, of {LABELS[one.quantity][0]}, off by {one.median_error:.0%} (median)"
    return f"of earlier predictions {held} of {count} intervals held, {worst}"


def _runs(found: Assessment) -> str:
    count = len(found.group.runs)
    return f"{count} run{'s' * (count != 1)} tell{'s' * (count == 1)}" if count else "there are no runs, and"


def next_measurement(found: Assessment, chart: list[Branch]) -> str:
    """The cheapest measurement that is missing, as a command, and what it would change."""
    run = found.planned.command()
    by_key = {one.question.key: one for one in chart}
    sizes = {one.global_batch_size for one in found.group.runs if one.step_s}
    if not found.critical or len(sizes) < 2:
        if not found.group.runs:
            return f"next: `{_joined('largebatch advise', run)}` measures what is missing"
        noise = next(one for one in QUESTIONS if one.key == NOISE)
        return f"next, at two batch sizes and for longer: `{noise.command(run, '')}`"
    if found.critical[0].is_noise:
        if found.evidence.of("critical_batch"):
            command = _joined(_STUDY, run)
            return f"measure critical-batch found no value; a study is next, and could change the answer: `{command}`"
        where = f"run.dir={shlex.quote(found.planned.folder)}" if found.planned.folder else ""
        command = _joined(_joined("largebatch advise", run), f"{where} {_BRANCHED}".strip())
        return (
            f"measure critical-batch was left out, which takes {NUM_STEPS:,} steps and could change the answer by a "
            f"factor: `{command}`"
        )
    if by_key[GAP].command:
        return f"the gap could lower it: `{by_key[GAP].command}`"
    rate = next(one for one in QUESTIONS if one.key == RATE)
    if by_key[RATE].command:
        return f"a tuned rate could raise it: `{rate.command(run, '')}`"
    return "no cheap measurement is missing: more seeds make the intervals narrower"


def _joined(command: str, run: str) -> str:
    return f"{command} {run}".strip()
