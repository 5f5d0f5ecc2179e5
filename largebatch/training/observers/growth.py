"""A batch that grows by the noise scale of its own run: decisions, their records, and the way back into a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from largebatch.batch.noise_growth import GrowthDecision, GrowthRule
from largebatch.batch.ramp import BatchRamp
from largebatch.diagnostics import NoiseScale
from largebatch.records.trackers import Row
from largebatch.training.loop import Observer, Run
from largebatch.training.observers.noise_scale import NoiseScaleObserver
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport

Follow = Callable[[Run, BatchRamp], None]
"""Lets a run go on by a ramp whose earlier stages are those of its present one: rates, steps, all that is scaled."""


def decided(ramp: BatchRamp, decisions: Sequence[GrowthDecision]) -> BatchRamp:
    """The candidates `ramp.plans` as a run has chosen among them.

    Raises:
        ValueError: if one of the decisions is for a batch that is no candidate.
    """
    totals, ramp = [plan.global_batch_size for plan in ramp.plans], ramp.undecided()
    for one in decisions:
        ramp = ramp.then(one.samples_seen, totals.index(one.total))
    return ramp


def decisions_in(values: Mapping[str, Any]) -> list[GrowthDecision]:
    """The decisions in the values of a checkpoint; none in those of a run that made none."""
    memory = values.get("memory")
    observers = {} if memory is None else memory["observers"]
    return [GrowthDecision.of(one) for one in observers.get(GrowthObserver.__name__, {}).get("decisions", ())]


class GrowthObserver(Observer):
    """Lets the batch grow after a step whose measurement confirms it, on every rank alike, and says why.

    It is the one observer that changes the run, and the one thing besides `samples_seen` that a position depends on.
    So its decisions are in every checkpoint. The measurements are sums over ranks, at steps that every rank knows; rank
    0 judges them, since another machine may round the interval differently.

    Rows after a decision have `batch/grown_to` and its evidence, `batch/num_steps` is the number of steps of the whole
    run as decided so far.

    Args:
        rows: for the rows.
        rule: when the batch grows.
        noise: measures; comes before this observer.
        follow: lets the run follow a decision.
        keep: called on rank 0 after one, with the ramp and all decisions so far, to write them down.

    Attributes:
        decisions: so far, those before a resume included.
        problems: what could not be written down.
    """

    def __init__(
        self,
        rows: RowLog,
        rule: GrowthRule,
        noise: NoiseScaleObserver,
        follow: Follow,
        keep: Callable[[BatchRamp, list[GrowthDecision]], None] = lambda ramp, decisions: None,
    ) -> None:
        self._rows, self._rule, self._noise, self._follow, self._keep = rows, rule, noise, follow, keep
        self.problems: list[str] = []
        self.decisions: list[GrowthDecision] = []
        self._in_a_row = 0

    @property
    def totals(self) -> tuple[int, ...]:
        """The candidates; the run begins with the first."""
        return self._rule.totals

    def on_start(self, run: Run) -> None:
        """Go by the decisions of a checkpoint; those of a run that begins are none."""
        self._go_by(run, decided(run.steps.batches.ramp, self.decisions))

    def after_step(self, run: Run, report: StepReport) -> None:
        """Judge the measurement of this step, if it made one."""
        total = report.plan.global_batch_size
        if report.norms is None or total == self._rule.totals[-1]:
            return
        scale = self._noise.latest
        low = None if scale is None or scale.interval is None else scale.interval[0]
        since = self.decisions[-1].samples_seen if self.decisions else 0
        judged = self._rule.judge(self._in_a_row, low=low, total=total, samples_seen=report.samples_seen, since=since)
        self._in_a_row, grown = run.runtime.broadcast(tuple(judged))
        if grown is not None:
            assert scale is not None
            self._decide(run, _decision(report.samples_seen, grown, scale))

    def forget_after(self, run: Run, samples_seen: int, memory: Mapping[str, Any]) -> None:
        """Forget what came after a checkpoint whose weights the run goes on with, at its present position.

        Decisions after it rest on weights that are gone. The steps that they led to are taken, so they stay on record;
        the batch goes back to that of the checkpoint, as do the measurements, and is to be confirmed anew.
        """
        noise = memory["observers"].get(type(self._noise).__name__)
        if noise is not None:
            self._noise.load(noise)
        self._in_a_row = 0
        ramp, now = run.steps.batches.ramp, run.progress.samples_seen
        # A decision after the step of the checkpoint is in it.
        was = decided(ramp, [one for one in self.decisions if one.samples_seen <= samples_seen]).at(samples_seen)
        if was is not ramp.at(now):
            self._decide(run, GrowthDecision(now, was.global_batch_size, "rollback"))

    def state(self) -> dict[str, Any]:
        """The decisions, and how many measurements confirm the next one."""
        return {"decisions": [one.record() for one in self.decisions], "in_a_row": self._in_a_row}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.decisions = [GrowthDecision.of(one) for one in state["decisions"]]
        self._in_a_row = state["in_a_row"]

    def _decide(self, run: Run, decision: GrowthDecision) -> None:
        before = run.steps.batches.ramp.at(run.progress.samples_seen).global_batch_size
        self.decisions.append(decision)
        self._go_by(run, decided(run.steps.batches.ramp, self.decisions))
        evidence = {"noise_scale": decision.value, "ci_low": decision.low, "ci_high": decision.high}
        known: Row = {f"batch/{name}": value for name, value in evidence.items() if value is not None}
        if known:
            known["batch/num_measurements"] = decision.num_measurements
        steps: Row = {"batch/grown_to": decision.total, "batch/num_steps": run.steps.num_steps}
        self._rows.log(run.progress, steps | known)
        if run.runtime.is_main:
            print(told(decision, before), flush=True)
            try:
                self._keep(run.steps.batches.ramp, self.decisions)
            except OSError as error:  # the decision is in rows and checkpoints, too
                self.problems.append(f"plan.json lacks the latest decision about the batch: {error}")

    def _go_by(self, run: Run, ramp: BatchRamp) -> None:
        if ramp != run.steps.batches.ramp:
            self._follow(run, ramp)


def told(decision: GrowthDecision, before: int) -> str:
    """A sentence on a decision.

    >>> told(GrowthDecision(640, 64, "noise_scale", 90.2, 71.0, 120.0, 25), 32)
    'batch 32 -> 64 after 640 samples: noise scale 90 samples (95 %: 71 to 120), 25 measurements'
    """
    start = f"batch {before:,} -> {decision.total:,} after {decision.samples_seen:,} samples: "
    if decision.value is None:
        return start + "the guard rolled the weights back to before it grew"
    interval = f"{decision.low:,.0f} to {decision.high:,.0f}"
    found = f"noise scale {decision.value:,.0f} samples (95 %: {interval})"
    return f"{start}{found}, {decision.num_measurements} measurements"


def _decision(samples_seen: int, total: int, scale: NoiseScale) -> GrowthDecision:
    low, high = scale.interval or (None, None)
    return GrowthDecision(samples_seen, total, "noise_scale", scale.value, low, high, scale.num_measurements)
