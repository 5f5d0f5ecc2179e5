"""What a target takes at each batch size: steps and samples, from a study or from the critical batch size.

The law is steps = S_min (1 + B_crit / B) and samples = E_min (1 + B / B_crit), E_min = S_min B_crit (McCandlish et al.
2018, equation 2.11). Without a study S_min is not known, and the quantities are multiples of the fewest.
"""

from __future__ import annotations

import math

from largebatch.diagnostics.intervals import Interval
from largebatch.records.report.critical_evidence import CriticalBatch, critical_batches, study_fit
from largebatch.records.report.estimates import (
    AtBatch,
    Estimate,
    Quantity,
    from_curve,
    inverse_law,
    kind_of,
    known_end,
    no_quantity,
    scaled,
)
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.groups import Group

_UNKNOWN = "neither a study, nor measure critical-batch, nor a noise scale is known"
_FROM_NOISE = ": an order of magnitude"


def target_quantities(group: Group, evidence: Evidence, *, is_only: bool) -> list[Quantity]:
    """Steps and samples to a target; arguments as of `quantities`."""
    found = critical_batches(group, evidence, is_only=is_only)
    fit = study_fit(group, evidence, is_only=is_only)
    if fit is not None:
        s_min, b_crit = ((fit.get(key) or {}).get("value") for key in ("s_min", "b_crit"))
        at = from_curve(fit["curve"], s_min=s_min, b_crit=b_crit)
        doubt = "" if fit.get("supported", True) else f"; {fit.get('verdict', 'the points do not support it')}"
        source = f"the study's fit{doubt}"
        steps = Quantity("steps", "steps to the target", "steps", source, at, {}, log=True)
        samples = Quantity("samples", "samples to the target", "samples", f"{source}, times the batch",
                           scaled(at, float), {}, log=True)  # fmt: skip
        return [steps, samples]
    over = ("steps to a target over the fewest, 1 + B_crit/B", "samples to a target over the fewest, 1 + B/B_crit")
    if not found:
        return [
            no_quantity("steps", over[0], "ratio", _UNKNOWN),
            no_quantity("samples", over[1], "ratio", _UNKNOWN),
        ]
    best = found[0]
    shown = f"by the model of McCandlish et al. 2018 from the {best.source}{_FROM_NOISE if best.is_noise else ''}"
    shown = f"no study; {shown}" if best.is_noise else shown
    steps = Quantity("steps", over[0], "ratio", shown, steps_over_fewest(best), {}, log=True)
    samples = Quantity("samples", over[1], "ratio", shown, samples_over_fewest(best), {}, log=True)
    return [steps, samples]


def steps_over_fewest(one: CriticalBatch) -> AtBatch:
    """1 + B_crit / B.

    >>> from largebatch.records.report.critical_evidence import NOISE_SCALE
    >>> steps_over_fewest(CriticalBatch(Interval(64.0, 32.0, math.inf), NOISE_SCALE, "", (16, 64)))(32)
    Estimate(value=3.0, low=2.0, high=None, kind='interpolated')
    """
    amount = Interval(one.amount.value, one.amount.low, one.amount.high if one.amount.high < math.inf else math.nan)
    return inverse_law(amount, one.sizes, plus=1.0)


def samples_over_fewest(one: CriticalBatch) -> AtBatch:
    """1 + B / B_crit: falls where the critical batch grows, so the ends change places.

    >>> from largebatch.records.report.critical_evidence import NOISE_SCALE
    >>> samples_over_fewest(CriticalBatch(Interval(64.0, 0.0, 128.0), NOISE_SCALE, "", (16, 64)))(32)
    Estimate(value=1.5, low=1.25, high=None, kind='interpolated')
    """

    def at(size: int) -> Estimate:
        value, low, high = (
            math.nan if end == 0 else 1 + size / end for end in (one.amount.value, one.amount.high, one.amount.low)
        )
        return Estimate(value, known_end(low), known_end(high), kind_of(size, one.sizes))

    return at
