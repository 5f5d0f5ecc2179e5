"""What is known of the critical batch size: a study, branched training, or a noise scale, the best evidence first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.optimizer_names import optimizer_name
from largebatch.records.report.estimates import count_of
from largebatch.records.report.evidence import Evidence, RunRecord
from largebatch.records.report.groups import Group
from largebatch.records.report.noise_quantities import is_of, measured_noise_scale, noise_sizes, variances_of

STUDY, BRANCHED, UNSUPPORTED = "study", "measure critical-batch", "study without support"
OPTIMIZER_NOISE_SCALE, NOISE_SCALE = "noise scale in the optimizer's geometry", "gradient noise scale"
RANKING = (STUDY, BRANCHED, UNSUPPORTED, OPTIMIZER_NOISE_SCALE, NOISE_SCALE)


@dataclass(frozen=True)
class CriticalBatch:
    """An estimate of the critical batch size, at which a run takes twice the fewest steps and twice the fewest samples.

    Attributes:
        amount: in samples with its 95 % interval; 0 and infinity: the evidence does not bound that end.
        kind: one of `RANKING`.
        source: the measurements that it rests on.
        sizes: the smallest and the largest batch that were measured for it; empty: not known.
        bound: "at least" or "at most": one end alone is known, and the value is that end; empty: it is a value.
    """

    amount: Interval
    kind: str
    source: str
    sizes: tuple[int, ...] = ()
    bound: str = ""

    @property
    def is_noise(self) -> bool:
        """Whether it is a noise scale: the critical batch to an order of magnitude (McCandlish et al. 2018, 2.4)."""
        return self.kind in (OPTIMIZER_NOISE_SCALE, NOISE_SCALE)


def critical_batches(group: Group, evidence: Evidence, *, is_only: bool) -> list[CriticalBatch]:
    """All that is known of one task and optimizer, in the order of `RANKING`.

    A study counts the steps of tuned runs; branched training compares losses of one checkpoint, at one rate rule; a
    noise scale needs a model. A fit that its own points do not support comes behind what was measured directly.
    """
    found = [
        _of_study(study_fit(group, evidence, is_only=is_only)),
        _branched(group, evidence, is_only=is_only),
        _of_optimizer(group.runs),
        _euclidean(group, evidence, is_only=is_only),
    ]
    return sorted((one for one in found if one is not None), key=lambda one: RANKING.index(one.kind))


def study_fit(group: Group, evidence: Evidence, *, is_only: bool) -> dict[str, Any] | None:
    """The study's fit for this optimizer, if it is of the same task or there is no other group."""
    for study in evidence.of("study"):
        tasks = {run.task for run in group.runs}
        if not is_only and not any(run.task in tasks and run.study == study.name for run in evidence.runs):
            continue
        for fit in study.result.numbers.get("fits") or ():
            same = optimizer_name(str(fit.get("optimizer", ""))) == group.optimizer
            if same and isinstance(fit.get("curve"), dict):
                return dict(fit)
    return None


def _of_study(fit: Mapping[str, Any] | None) -> CriticalBatch | None:
    amount = None if fit is None else _bounded(fit.get("b_crit"))
    if fit is None or amount is None:
        return None
    sizes = [int(size) for size in fit["curve"].get("batch_size") or () if size]
    is_supported, verdict = bool(fit.get("supported", True)), str(fit.get("verdict", ""))
    kind = STUDY if is_supported else UNSUPPORTED
    source = "the fit of a study" + (f" ({verdict})" if verdict and not is_supported else "")
    return CriticalBatch(amount, kind, source, _ends(sizes))


def _branched(group: Group, evidence: Evidence, *, is_only: bool) -> CriticalBatch | None:
    """The measurement at the most samples that made progress: the critical batch grows as the loss falls."""
    best: tuple[float, CriticalBatch] | None = None
    for record in evidence.of("critical_batch"):
        numbers = record.result.numbers
        amount, bound = _value_or_bound(numbers.get("b_crit"))
        if amount is None or not has_progress(numbers) or not (is_only or is_of(record, group)):
            continue
        seen = numbers.get("samples_seen")
        seen = float(seen) if isinstance(seen, (int, float)) and math.isfinite(seen) else 0.0
        if best is None or seen > best[0]:
            source = f"measure critical-batch in {record.name}, after {seen:,.0f} samples"
            if isinstance(alone := numbers.get("b_crit_of_rates"), (int, float)):
                source += f", at inherited rates, which alone would give {alone:,.0f}"
            best = seen, CriticalBatch(amount, BRANCHED, source, (), bound)
    return None if best is None else best[1]


def has_progress(numbers: Mapping[str, Any]) -> bool:
    """Whether the loss of the smallest batch fell by more than its noise: else no batch can need more samples for it.

    >>> has_progress({"progress": {"value": 0.1, "low": 0.02, "high": 0.2}}), has_progress({})  # {}: an older record
    (True, True)
    >>> has_progress({"progress": {"value": 0.1, "low": -0.02, "high": 0.2}})
    False
    """
    progress = numbers.get("progress")
    if not isinstance(progress, Mapping):
        return True
    low = progress.get("low")
    return isinstance(low, (int, float)) and low > 0


def _of_optimizer(runs: Sequence[RunRecord]) -> CriticalBatch | None:
    found = [(run, one) for run in runs if (one := run.optimizer_noise_scale) is not None and one.value > 0]
    if not found:
        return None
    sizes = noise_sizes([run for run, _ in found])
    amount = _envelope([one for _, one in found])
    source = f"noise scale in the optimizer's geometry at the end of {count_of(found)}, envelope of the intervals"
    return CriticalBatch(amount, OPTIMIZER_NOISE_SCALE, source, _ends(sizes))


def _euclidean(group: Group, evidence: Evidence, *, is_only: bool) -> CriticalBatch | None:
    found = measured_noise_scale(group, variances_of(group, evidence, is_only=is_only))
    if found is None:
        return None
    amount, source, sizes = found
    return CriticalBatch(amount, NOISE_SCALE, source, _ends(sizes))


def _envelope(values: Sequence[Interval]) -> Interval:
    middle = statistics.median(one.value for one in values)
    return Interval(middle, min(one.low for one in values), max(one.high for one in values))


def _value_or_bound(value: object) -> tuple[Interval | None, str]:
    """A value with its ends; or the only end that is known, and which one it is: branches may all lie on one side.

    >>> _value_or_bound({"value": None, "low": 512.0, "high": None})
    (Interval(value=512.0, low=512.0, high=inf), 'at least')
    >>> _value_or_bound({"value": None, "low": None, "high": 48.0})
    (Interval(value=48.0, low=0.0, high=48.0), 'at most')
    """
    if not isinstance(value, Mapping) or value.get("value") is not None:
        return _bounded(value), ""
    for end, bound in (("low", "at least"), ("high", "at most")):
        if (amount := _bounded({**value, "value": value.get(end)})) is not None:
            return amount, bound
    return None, ""


def _bounded(value: object) -> Interval | None:
    """A value with ends that may be null, which is unbounded; None for anything else."""
    ends = [value.get(key) for key in ("value", "low", "high")] if isinstance(value, Mapping) else [None]
    if any(end is not None and not isinstance(end, (int, float)) for end in ends) or not ends[0] or ends[0] <= 0:
        return None
    return Interval(
        float(ends[0]), 0.0 if ends[1] is None else float(ends[1]), math.inf if ends[2] is None else float(ends[2])
    )


def _ends(sizes: Sequence[int]) -> tuple[int, ...]:
    return (min(sizes), max(sizes)) if sizes else ()
