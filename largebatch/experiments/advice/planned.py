"""The run that advice is about, and the runs and records that are evidence for it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from largebatch.diagnostics.predictions.cost import CostConfig
from largebatch.records.report.evidence import Evidence, JsonRecord, LeftOut, RunRecord
from largebatch.records.report.groups import Group
from largebatch.records.report.task_names import optimizer_of, task_of

_SAME_MODEL = ("model.weights",)  # settings that change its start, not what it is
_OF_AN_OPTIMIZER = ("find_lr", "critical_batch")  # records of another optimizer say nothing here


@dataclass(frozen=True)
class PlannedMemory:
    """A predicted memory of a rank.

    Attributes:
        device: cuda or cpu.
        micro_batch_size: samples, for which `peak` was predicted.
        peak: bytes of tensors.
        per_sample: bytes that each further sample adds.
        outside: the most bytes beside tensors, and the factor of fragmentation: the upper end of the interval.
        fits: the largest micro-batch within a given budget; None: no budget was given.
        budget: its bytes.
    """

    device: str
    micro_batch_size: int
    peak: int
    per_sample: float
    outside: tuple[int, float] | None = None
    fits: int | None = None
    budget: int | None = None


@dataclass(frozen=True)
class Planned:
    """A run as it is planned.

    Attributes:
        settings: dotted key of its config -> value as a text.
        batch: global, in samples.
        num_samples: of the training set.
        world_size: processes.
        max_micro: the most samples of one forward pass.
        peak_lr: its highest learning rate.
        overrides: as typed, without those of the section of the verb.
        flags: of Hydra, as typed.
        memory: predicted; None: it was not asked for, or cannot be.
        cost: of a device; None: what the runs say.
        folder: of `largebatch advise`, which goes on there; empty: of another verb.
    """

    settings: Mapping[str, str]
    batch: int
    num_samples: int
    world_size: int
    max_micro: int
    peak_lr: float
    overrides: Sequence[str] = ()
    flags: Sequence[str] = ()
    memory: PlannedMemory | None = None
    cost: CostConfig | None = None
    folder: str = ""

    @property
    def task(self) -> str:
        """Data set and model."""
        return task_of(self.settings)

    @property
    def optimizer(self) -> str:
        """Its name for people."""
        return optimizer_of(self.settings)

    def command(self, *, without: Sequence[str] = ()) -> str:
        """The overrides as a shell takes them: of a key that was typed twice the last one, which is what counted.

        Args:
            without: keys that the command sets by itself.
        """
        last = {_key(one): one for one in self.overrides}
        kept = [one for one in dict.fromkeys(self.overrides) if last[_key(one)] == one and _key(one) not in without]
        return " ".join(map(shlex.quote, [*kept, *self.flags]))


def _key(override: str) -> str:
    """The key that an override sets.

    >>> _key("++model.width=8"), _key("~data.validation")
    ('model.width', '~data.validation')
    """
    return override.partition("=")[0].lstrip("+")


def matching(evidence: Evidence, planned: Planned) -> tuple[Group, Evidence]:
    """The runs of the planned task, model and optimizer as one group, and the evidence without all others.

    Every run and record that is no evidence for the plan goes to `left_out` with the reason.
    """
    reasons: dict[object, LeftOut] = {}
    for run in evidence.runs:
        if reason := _against_run(run, planned):
            reasons[run.folder] = LeftOut(run.folder, reason)
    for found in evidence.records.values():
        for record in found:
            if reason := _against_record(record, planned):
                reasons[record.path] = LeftOut(record.path, reason)
    kept = evidence.without(list(reasons.values()))
    sizes = sorted({run.global_batch_size for run in kept.runs})
    by_batch = {size: [run for run in kept.runs if run.global_batch_size == size] for size in sizes}
    studies = {run.study for run in kept.runs}
    study = studies.pop() if len(studies) == 1 else ""
    return Group(planned.task, planned.optimizer, by_batch, study), kept


def _against_run(run: RunRecord, planned: Planned) -> str:
    if not run.is_compared:
        return "belongs to an experiment of the textbook, which differs in its subject"
    if run.is_ramped:
        return "its batch changes, so it belongs to no batch size"
    if reason := _another(run.settings, planned):
        return reason
    return "" if run.optimizer == planned.optimizer else f"its optimizer is {run.optimizer}, not {planned.optimizer}"


def _against_record(record: JsonRecord, planned: Planned) -> str:
    if not record.settings:  # of an earlier version, or analysed from a table: the user named it
        return ""
    if reason := _another(record.settings, planned):
        return reason
    is_bound = record.path.stem in _OF_AN_OPTIMIZER
    name = optimizer_of(record.settings)
    return f"its optimizer is {name}, not {planned.optimizer}" if is_bound and name != planned.optimizer else ""


def _another(settings: Mapping[str, str], planned: Planned) -> str:
    """Why the settings are of another data set or model; empty if they are of the same."""
    if (task := task_of(settings)) != planned.task:
        return f"is of {task}, not of {planned.task}"
    # A key that only one of both has may be newer than the other.
    for key in sorted(key for key in settings.keys() & planned.settings.keys() if key.startswith("model.")):
        own, theirs = planned.settings[key], settings[key]
        if own != theirs and not key.startswith(_SAME_MODEL):
            return f"is of another model: {key}={theirs}, here {own}"
    return ""
