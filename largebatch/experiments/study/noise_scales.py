"""Which noise scale came nearer to B_crit: the Euclidean one, or the one in the optimizer's geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from largebatch.diagnostics.critical_batch.critical_batch import CriticalBatch, Estimate
from largebatch.diagnostics.intervals import Interval
from largebatch.experiments.study.points import StudyPoint


@dataclass(frozen=True)
class Contest:
    """Both noise scales of an optimizer's tuned runs beside the B_crit of its curve, in samples.

    Attributes:
        optimizer: its name.
        b_crit: from steps to the target.
        euclidean, of_optimizer: geometric means over the batch sizes that have both, of values and of ends.
    """

    optimizer: str
    b_crit: Estimate
    euclidean: Interval
    of_optimizer: Interval

    @property
    def errors(self) -> tuple[float, float]:
        """|log(noise scale / B_crit)|, Euclidean and in the optimizer's geometry."""
        return tuple(  # type: ignore[return-value]
            abs(math.log(one.value / self.b_crit.value)) for one in (self.euclidean, self.of_optimizer)
        )

    @property
    def is_nearer(self) -> bool:
        """Whether the one in the optimizer's geometry has the smaller error."""
        euclidean, of_optimizer = self.errors
        return of_optimizer < euclidean

    @property
    def is_decided(self) -> bool:
        """Whether the intervals leave no doubt which is nearer.

        The nearer one is that on whose side of their geometric mean B_crit lies. So the two must not overlap, and the
        interval of B_crit must not meet the one of their mean.
        """
        one, other, b_crit = self.euclidean, self.of_optimizer, self.b_crit
        if one.low <= other.high and other.low <= one.high:
            return False
        low, high = math.sqrt(one.low * other.low), math.sqrt(one.high * other.high)
        return b_crit.high < low or b_crit.low > high


def contests(fits: Mapping[str, CriticalBatch], points: Sequence[StudyPoint]) -> list[Contest]:
    """Of every optimizer whose B_crit is supported and whose runs have both noise scales."""
    found = []
    for name, fit in fits.items():
        pairs = [
            (one.noise_scale, one.optimizer_noise_scale)
            for one in points
            if one.optimizer == name and one.noise_scale is not None and one.optimizer_noise_scale is not None
        ]
        if pairs and fit.b_crit is not None and fit.supported:
            euclidean, of_optimizer = (_mean([pair[place] for pair in pairs]) for place in (0, 1))
            found.append(Contest(name, fit.b_crit, euclidean, of_optimizer))
    return found


def sentences(found: Sequence[Contest], names: Mapping[str, str]) -> list[str]:
    """The verdict, and the numbers of each optimizer; nothing without a contest.

    Args:
        found: the contests.
        names: of the optimizers, as they are printed.
    """
    if not found:
        return []
    means = [math.exp(sum(one.errors[place] for one in found) / len(found)) for place in (0, 1)]
    nearer = [names[one.optimizer] for one in found if one.is_nearer]
    count = f"{len(found)} optimizer{'s' * (len(found) > 1)}"
    lines = [
        f"Noise scale as a prediction of B_crit, over {count}: the Euclidean one misses by a factor of {means[0]:.2g}, "
        f"the one in the optimizer's geometry by {means[1]:.2g} (geometric means), and the latter is nearer for "
        f"{', '.join(nearer) or 'none'}. {_verdict(found)}"
    ]
    for one in found:
        decided = "" if one.is_decided else "; the intervals do not decide which is nearer"
        lines.append(
            f"{names[one.optimizer]}: the noise scale is {_text(one.euclidean)} samples, in the optimizer's geometry "
            f"{_text(one.of_optimizer)}, beside a B_crit of {one.b_crit.value:,.0f}{decided}."
        )
    return lines


def _verdict(found: Sequence[Contest]) -> str:
    decided = [one.is_nearer for one in found if one.is_decided]
    if len(found) > 1 and len(decided) == len(found) and len(set(decided)) == 1:
        if decided[0]:
            return "The intervals decide for the optimizer's geometry each time: here it predicted better."
        return "The intervals decide for the Euclidean one each time: the optimizer's geometry did not predict better."
    return (
        f"The intervals decide {len(decided)} of {len(found)}, {sum(decided)} for the optimizer's geometry: this "
        "evidence cannot tell which predicts better."
    )


def _mean(scales: Sequence[Interval | None]) -> Interval:
    known = [one for one in scales if one is not None]
    return Interval(
        *(math.exp(sum(math.log(getattr(one, end)) for one in known) / len(known)) for end in ("value", "low", "high"))
    )


def _text(scale: Interval) -> str:
    return f"{scale.value:,.0f} ({scale.low:,.0f} to {scale.high:,.0f})"
