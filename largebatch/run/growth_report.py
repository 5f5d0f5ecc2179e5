"""What a plan and a summary say of a batch that grows by the noise scale of its own run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largebatch.batch.noise_growth import GrowthDecision, as_overrides
from largebatch.run.derive import RunNumbers
from largebatch.run.method_rows import PlanRow
from largebatch.run.token_counts import shown_samples
from largebatch.training.observers.growth import told


def candidate_rows(numbers: RunNumbers) -> list[PlanRow]:
    """The candidates, and how the run decides; none in a run whose ramp is known beforehand."""
    rule = numbers.growth
    if rule is None:
        return []
    later = ", ".join(shown_samples(total, numbers.tokens_per_sample) for total in rule.totals[1:])
    factor = "" if rule.factor == 1 else f"{rule.factor:g} x "
    wait = f", {rule.at_least:,} samples apart or more" if rule.at_least else ""
    peaks = ", ".join(f"{peak.value:.6g}" for peak in numbers.peak_lrs[1:])
    return [
        (
            "batch grows to",
            later,
            f"decided while it trains: one further when it is at most {factor}the lower end of the noise scale's 95 % "
            f"interval at {rule.confirmations} measurements in a row{wait}; peak LR {peaks}",
        )
    ]


def growth_record(numbers: RunNumbers, decisions: Sequence[GrowthDecision]) -> dict[str, Any]:
    """The same for plan.json, with the decisions so far; empty in a run whose ramp is known beforehand."""
    rule = numbers.growth
    if rule is None:
        return {}
    known = {"factor": rule.factor, "confirmations": rule.confirmations, "at_least_samples": rule.at_least}
    candidates = [
        {"global_batch_size": total, "peak_lr": peak.value}
        for total, peak in zip(rule.totals, numbers.peak_lrs, strict=True)
    ]
    return {"growth": known | {"candidates": candidates, "decisions": [one.record() for one in decisions]}}


def decision_rows_of(totals: Sequence[int], decisions: Sequence[GrowthDecision]) -> list[tuple[str, object]]:
    """Rows of the summary: each decision with its evidence, and how to take the same steps without measuring."""
    befores = [totals[0], *(one.total for one in decisions)]
    rows: list[tuple[str, object]] = [("batch", "did not grow: no measurement confirmed the next one")]
    if decisions:
        rows = [("batch grew", told(one, before)) for one, before in zip(decisions, befores, strict=False)]
        rows.append(("the same again", " ".join(f"'{one}'" for one in as_overrides(decisions))))
    return rows
