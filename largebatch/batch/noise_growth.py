"""When a batch grows by the noise scale that its run measures: a pure function of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True)
class GrowthDecision:
    """One change of the batch that a run decided on, with its evidence.

    Attributes:
        samples_seen: from there on `total` holds.
        total: samples per step.
        because: the noise scale confirmed the larger batch; or a guard rolled the weights back to before it.
        value, low, high: the noise scale that decided, in samples, and its 95 % interval; None after a rollback.
        num_measurements: in that estimate.
    """

    samples_seen: int
    total: int
    because: Literal["noise_scale", "rollback"] = "noise_scale"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_measurements: int = 0

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> GrowthDecision:
        """The inverse of `record`."""
        return cls(**record)


class Judged(NamedTuple):
    """What a measurement changes.

    Attributes:
        in_a_row: measurements in a row, this one included, that confirm the next batch; 0 after a decision.
        total: the batch from here on, if it grows here; None: it stays.
    """

    in_a_row: int
    total: int | None


@dataclass(frozen=True)
class GrowthRule:
    """The batch may be up to `factor` times the noise scale: it grows when the lower end of the interval says so.

    The next candidate B' confirms itself at a measurement if B' <= factor x low, with low the lower end of the 95 %
    interval of the noise scale. No interval confirms nothing. The batch grows by one candidate when `confirmations`
    measurements in a row have confirmed it.

    Why in a row: an interval that is looked at again and again is above the truth at some look far more often than in
    2.5 % of runs. Windows of successive measurements overlap, so a few in a row help little: `largebatch bench growth`
    counts how often the batch grows too early.

    Why one candidate at a time: the next measurements are made at the new batch and rate before a further growth, and
    the rate never jumps by more than the list of candidates allows.

    Source: McCandlish et al. 2018 (arXiv 1812.06162), appendix D, for a batch that follows the noise scale during the
    run. The lower end, the confirmations and the candidates are this package's own.

    Attributes:
        totals: candidates in samples, ascending; the run begins with the first.
        total_samples: of the run. A batch that no longer fits into it is not chosen.
        factor: above 0.
        confirmations: 1 or more.
        at_least: samples between two decisions, and before the first.

    Raises:
        ValueError: for a number out of range.

    >>> rule = GrowthRule((32, 64, 128), total_samples=10_000, confirmations=2)
    >>> rule.judge(0, low=70.0, total=32, samples_seen=320, since=0)
    Judged(in_a_row=1, total=None)
    >>> rule.judge(1, low=65.0, total=32, samples_seen=640, since=0)
    Judged(in_a_row=0, total=64)
    >>> rule.judge(1, low=65.0, total=64, samples_seen=960, since=640)  # 128 is more than 65
    Judged(in_a_row=0, total=None)
    """

    totals: tuple[int, ...]
    total_samples: int
    factor: float = 1.0
    confirmations: int = 3
    at_least: int = 0

    def __post_init__(self) -> None:
        if list(self.totals) != sorted(set(self.totals)) or len(self.totals) < 2 or self.totals[0] < 1:
            raise ValueError(f"totals={list(self.totals)}: two or more batches, each larger than the one before.")
        if not self.factor > 0 or self.confirmations < 1 or self.at_least < 0:
            raise ValueError(
                f"factor={self.factor}, confirmations={self.confirmations}, at_least={self.at_least}: above 0, 1 or "
                "more, 0 or more."
            )

    def judge(self, in_a_row: int, *, low: float | None, total: int, samples_seen: int, since: int) -> Judged:
        """What a measurement changes.

        Args:
            in_a_row: as the measurement before has left it.
            low: lower end of the interval of the noise scale, in samples; None: there is no interval.
            total: the present batch, one of `totals`.
            samples_seen: after the step of the measurement; the next step begins there.
            since: `samples_seen` of the latest decision; 0 before the first.
        """
        place = self.totals.index(total) + 1
        if place == len(self.totals) or low is None or not self.totals[place] <= self.factor * low:
            return Judged(0, None)
        in_a_row += 1
        fits = samples_seen + self.totals[place] <= self.total_samples
        if in_a_row < self.confirmations or samples_seen - since < self.at_least or not fits:
            return Judged(in_a_row, None)
        return Judged(0, self.totals[place])


def as_overrides(decisions: Sequence[GrowthDecision]) -> list[str]:
    """The decisions as settings of a run that takes the same steps without measuring.

    >>> as_overrides([GrowthDecision(640, 64), GrowthDecision(1280, 128)])
    ['batch.ramp.by=milestones', 'batch.ramp.milestones=[640samples,1280samples]', 'batch.ramp.totals=[64,128]']
    """
    milestones = ",".join(f"{one.samples_seen}samples" for one in decisions)
    totals = ",".join(str(one.total) for one in decisions)
    return ["batch.ramp.by=milestones", f"batch.ramp.milestones=[{milestones}]", f"batch.ramp.totals=[{totals}]"]
