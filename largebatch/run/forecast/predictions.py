"""Predictions of one run from earlier runs of the same kind: time, memory, communication, and its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions.grades import widened, widening
from largebatch.diagnostics.predictions.kinds import INTERPOLATED, MEASURED, kind_of
from largebatch.diagnostics.predictions.positive_law import fit_positive_law
from largebatch.diagnostics.predictions.shape import Shape
from largebatch.records.graded_runs import AT_THE_END, LABELS
from largebatch.run.forecast.conditions import OF_COST, OF_MACHINE, OF_RESULT
from largebatch.run.forecast.earlier_runs import Earlier, EarlierRun

MOST_APART = 10.0
"""Upper over lower end of an interval that is printed; wider ones are only recorded and graded."""
_LEAST_SEEDS = 3


@dataclass(frozen=True)
class Prediction:
    """A quantity of a run before it begins.

    Attributes:
        value, low, high: with the 95 % interval for one run.
        unit: of all three.
        kind: `measured`, `interpolated` or `extrapolated`: where the run lies among the earlier ones.
        source: what it rests on.
        widened_by: factor on the logarithm by which grades of earlier predictions have widened the interval.
    """

    value: float
    low: float
    high: float
    unit: str
    kind: str
    source: str
    widened_by: float = 1.0

    @property
    def is_told(self) -> bool:
        """Whether it says enough to be printed: not that a step takes between 0.2 ms and 40 minutes."""
        return self.high <= MOST_APART * self.low


@dataclass(frozen=True)
class Coming:
    """The run that is predicted.

    Attributes:
        conditions: as of `conditions`.
        global_batch_size, num_samples: of batch and training set.
        shape: of a rank's part of the batch.
    """

    conditions: Mapping[str, str]
    global_batch_size: int
    num_samples: int
    shape: Shape

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which the run sees as many samples as the training set has."""
        return self.num_samples / self.global_batch_size


def predictions(coming: Coming, earlier: Earlier) -> dict[str, Prediction]:
    """Quantity -> its prediction, for those with an interval: a value without one would be no prediction."""
    alike = [run for run in earlier.runs if _share(run, coming, OF_COST)]
    repeated = [run for run in earlier.runs if run.ends and _share(run, coming, OF_RESULT)]
    found = {
        "step_time": _of_step(coming, alike, "step_time", lambda run: 1.0),
        "epoch_time": _of_step(
            coming, alike, "epoch_time", lambda run: run.num_samples / run.global_batch_size, coming.steps_per_epoch
        ),
        "memory": _memory(coming, alike),
        "exposed_communication": _constant(coming, alike, "exposed_communication"),
        **{key: _at_the_end(key, repeated) for key in AT_THE_END},
    }
    named = {key: (one, source) for key, pair in found.items() if pair is not None for one, source in [pair]}
    return {
        key: made
        for key, (one, source) in named.items()
        if (made := _prediction(key, one, source, coming, alike, earlier)) is not None
    }


def _share(run: EarlierRun, coming: Coming, names: Sequence[str]) -> bool:
    return all(run.conditions.get(name) == coming.conditions[name] for name in names)


Found = tuple[Interval, str]


def _of_step(coming: Coming, alike: Sequence[EarlierRun], key: str, per: Any, factor: float = 1.0) -> Found | None:
    """A time that is a multiple of a step's: `per` steps of an earlier run, `factor` of the coming one."""
    known = [run for run in alike if key in run.measured]
    if not known:
        return None
    law = fit_positive_law([run.shape.time_terms for run in known], [run.measured[key] / per(run) for run in known])
    one = law.at(coming.shape.time_terms)
    return Interval(factor * one.value, factor * one.low, factor * one.high), _count(known)


def _memory(coming: Coming, alike: Sequence[EarlierRun]) -> Found | None:
    known = [run for run in alike if "memory" in run.measured]
    sizes = {run.shape.micro_batch_size for run in known}
    if not known or (len(sizes) == 1 and coming.shape.micro_batch_size not in sizes):
        return None  # one size does not tell what grows with it
    law = fit_positive_law([run.shape.memory_terms for run in known], [run.measured["memory"] for run in known])
    return law.at(coming.shape.memory_terms), _count(known)


def _constant(coming: Coming, alike: Sequence[EarlierRun], key: str) -> Found | None:
    values = [run.measured[key] for run in alike if key in run.measured]
    if not values or coming.conditions["ranks"] == "1":
        return None
    source = f"{_count(values)}, taken as the same at every batch size"
    return fit_positive_law([[1.0]] * len(values), values).at([1.0]), source


def _at_the_end(key: str, alike: Sequence[EarlierRun]) -> Found | None:
    known = [run for run in alike if run.seed is not None and key in run.ends]
    replicates = list({run.seed: run for run in known}.values())  # the newest of each seed
    if len(replicates) < _LEAST_SEEDS:
        return None
    law = fit_positive_law([[1.0]] * len(replicates), [run.ends[key] for run in replicates])
    return law.at([1.0]), f"{_count(replicates)} that differ in the seed alone"


def _prediction(
    key: str, one: Interval, source: str, coming: Coming, alike: Sequence[EarlierRun], earlier: Earlier
) -> Prediction | None:
    grades = [
        grade
        for run in earlier.runs
        if _share(run, coming, OF_MACHINE)
        for grade in run.grades
        if grade.quantity == key
    ]
    factor = widening(grades)
    wide = widened(one, factor)
    if not all(map(math.isfinite, (wide.value, wide.low, wide.high))) or wide.low <= 0:
        return None
    if factor > 1:
        source += f"; the interval is {factor:.3g} times as wide as theirs, as {len(grades)} graded runs ask"
    sizes = [run.global_batch_size for run in alike]
    is_end = key in AT_THE_END
    kind = MEASURED if is_end else kind_of(coming.global_batch_size, sizes)
    if kind == MEASURED and all(run.shape != coming.shape for run in alike) and not is_end:
        kind = INTERPOLATED
    return Prediction(wide.value, wide.low, wide.high, LABELS[key][1], kind, source, factor)


def _count(found: Sequence[Any]) -> str:
    return f"{len(found)} earlier run{'' if len(found) == 1 else 's'}"


def record_of(found: Mapping[str, Prediction]) -> dict[str, Any]:
    """As plain values, for plan.json."""
    return {key: asdict(one) for key, one in found.items()}
