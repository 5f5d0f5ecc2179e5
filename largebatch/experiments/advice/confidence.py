"""How sure the answer is: what it rests on, what would change it, and the cheapest next measurement."""

from __future__ import annotations

from largebatch.experiments.advice.assessment import Assessment
from largebatch.experiments.advice.commands import ADVISE, BRANCHED, NOISE_COMMAND, STUDY, command_for, goes_on
from largebatch.experiments.advice.costs import span
from largebatch.experiments.advice.decision import GAP, OPEN, UNMEASURED, Branch
from largebatch.experiments.advice.mid_run_branches import NUM_STEPS
from largebatch.experiments.advice.questions import COMMUNICATION, NOISE, RATE
from largebatch.records.graded_runs import LABELS, calibration_of
from largebatch.records.report.critical_evidence import has_progress
from largebatch.records.report.estimates import EXTRAPOLATED, kind_of
from largebatch.records.report.evidence import differing
from largebatch.records.report.shapes import usual_ranks

_MOST_DIFFERING = 3  # settings that are named


def how_sure(found: Assessment, chart: list[Branch]) -> str:
    """What the answer rests on, what would change it, and the cheapest next measurement."""
    parts = [_rests_on(found), *_unlike(found), _graded(found)]
    if gaps := [one.question.key for one in chart if one.finding.taken in (UNMEASURED, OPEN)]:
        words = {NOISE: "the noise scale", COMMUNICATION: "communication", RATE: "the learning rate", GAP: "the gap"}
        if named := [words[key] for key in gaps if key in words]:
            parts.append(f"not settled: {', '.join(named)}")
    parts.append(next_measurement(found, chart))
    return f"How sure: {'; '.join(parts)}."


def _rests_on(found: Assessment) -> str:
    if not found.critical:
        return f"{_runs(found)} no critical batch" if found.group.runs else "no run of this task and optimizer is known"
    best = found.critical[0]
    how = "a noise scale, not a measurement of it" if best.is_noise else "measured"
    text = f"the critical batch is {'bounded on one side' if best.bound else how}"
    value = round(best.amount.value)
    if best.sizes and kind_of(value, best.sizes) == EXTRAPOLATED:
        low, high = best.sizes[0], best.sizes[-1]
        text += (
            f", from batch {low:,} alone"
            if high == low
            else f", outside of batches {low:,} to {high:,}, where it was measured"
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
    return f"{count} run{'s' * (count != 1)} tell{'s' * (count == 1)}"


def _unlike(found: Assessment) -> list[str]:
    """What the runs are besides the plan, or besides each other: numbers of such runs are of a mixture."""
    told, timed = [], [run for run in found.group.runs if run.step_s]
    if timed and (ranks := usual_ranks(timed)) != found.planned.world_size:
        told.append(f"times are of {ranks} process{'es' * (ranks > 1)}, and the plan has {found.planned.world_size}")
    if not found.group.study and (keys := differing([run.settings for run in found.group.runs])):
        more = f" and {len(keys) - _MOST_DIFFERING} more" if len(keys) > _MOST_DIFFERING else ""
        told.append(f"the runs differ besides the batch, in {', '.join(keys[:_MOST_DIFFERING])}{more}")
    return told


def next_measurement(found: Assessment, chart: list[Branch]) -> str:
    """The cheapest measurement that is missing, as a command, and what it would change."""
    planned, by_key = found.planned, {one.question.key: one for one in chart}
    sizes = {one.global_batch_size for one in found.group.runs if one.step_s}
    if not found.critical or len(sizes) < 2:
        if not found.group.runs:
            return f"next: `{command_for(ADVISE, planned)}` measures what is missing"
        if planned.folder and len(sizes) < 2:
            return f"the budget ended before a second batch size; `{goes_on(planned)}` makes it"
        return f"next, at two batch sizes and for longer: `{command_for(NOISE_COMMAND, planned)}`"
    if found.critical[0].is_noise:
        if tried := found.evidence.of("critical_batch"):
            why = "" if any(has_progress(one.result.numbers) for one in tried) else (
                ", as the loss hardly falls within its branches"
            )  # fmt: skip
            return (
                f"measure critical-batch found no value{why}; a study is next, and could change the answer: "
                f"`{command_for(STUDY, planned)}`"
            )
        return (
            f"measure critical-batch was left out, which takes {NUM_STEPS:,} steps and could change the answer by a "
            f"factor: `{goes_on(planned, BRANCHED)}`"
        )
    if by_key[GAP].command:
        return f"the gap could lower it: `{by_key[GAP].command}`"
    if by_key[RATE].command:
        return f"a tuned rate could raise it: `{by_key[RATE].command}`"
    return "no cheap measurement is missing: more seeds make the intervals narrower"
