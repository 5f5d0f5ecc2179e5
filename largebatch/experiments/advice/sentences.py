"""The answer in three sentences: how large, at what cost, and how sure."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from largebatch.diagnostics.intervals import Interval
from largebatch.experiments.advice.assessment import Assessment
from largebatch.experiments.advice.confidence import how_sure
from largebatch.experiments.advice.costs import Ratios, ratios, span
from largebatch.experiments.advice.decision import Branch, number
from largebatch.records.report.batches import Difference
from largebatch.records.report.estimates import TOO_WIDE, is_too_wide
from largebatch.records.report.headline import cost_interval, cost_text

_FAR = 4  # a candidate that is further from the critical batch, by this factor, is not near it
_NO_GAP = "the gap between both was not measured"


@dataclass(frozen=True)
class Recommendation:
    """A batch size out of the candidates.

    Attributes:
        batch: the candidate next to the critical batch, on a logarithmic scale, that no measured end speaks against.
        base: the smallest candidate, which it is compared with.
        limit: the smallest measured size that ends worse than the smallest one, beyond the noise; None: none does.
        fastest: the candidate with the least time to the target on these processes: a larger one takes more samples and
            more time; None: step times are not known.
    """

    batch: int
    base: int
    limit: int | None
    fastest: int | None


def recommended(found: Assessment) -> Recommendation | None:
    """None where nothing is known of the critical batch."""
    if not found.critical:
        return None
    limit, fastest = quality_limit(found), fastest_candidate(found)
    most = min(fastest or math.inf, math.inf if limit is None else limit - 1)
    allowed = [size for size in found.sizes if size <= most] or found.sizes[:1]
    value = found.critical[0].amount.value
    batch = min(allowed, key=lambda size: abs(math.log(size / value)))
    return Recommendation(batch, found.sizes[0], limit, fastest)


def fastest_candidate(found: Assessment) -> int | None:
    """By the time to the target; None where it is not known, with an interval that says something, at each of them."""
    times = [found.at("time_to_target", size) for size in found.sizes]
    if len(times) < 2 or any(None in (one.value, one.low, one.high) or one.is_too_wide for one in times):
        return None
    return min(zip(found.sizes, times, strict=True), key=lambda pair: pair[1].value or 0.0)[0]


def quality_limit(found: Assessment) -> int | None:
    """The smallest size whose end is worse than the smallest size's by an interval over seeds that excludes 0."""
    worse = (size for size, one in found.worse.items() if one.over == "seeds" and one.change.low > 0)
    return min(worse, default=None)


def sentences(found: Assessment, chart: list[Branch]) -> list[str]:
    """The three of them."""
    choice = recommended(found)
    return [how_large(found, choice), at_what_cost(found, choice), how_sure(found, chart)]


def how_large(found: Assessment, choice: Recommendation | None) -> str:
    """The range, its interval and its reason."""
    if choice is None:
        lacks = "none of the evidence has a study, a measure critical-batch or a noise scale"
        why = lacks if found.evidence else "there is no run and no measurement"
        return f"How large the batch should be is not known: {why} of this task and optimizer."
    best = found.critical[0]
    about = ", to an order of magnitude" if best.is_noise else ""
    size, takes = f"{best.amount.value:,.0f} samples", "twice the fewest steps and twice the fewest samples"
    if best.bound:
        text = f"The batch should be {best.bound} {size} (95 %): where a run takes {takes} is only bounded, by "
    else:
        text = f"The batch should be about {size}, {span(best.amount)} (95 %){about}: there a run takes {takes}, by "
    text += f"{'the ' * best.is_noise}{best.source}"
    if best.amount.value > found.planned.num_samples:
        text += f"; the training set has only {found.planned.num_samples:,}"
    if choice.fastest is not None and choice.fastest < min(best.amount.value, found.sizes[-1]):
        text += (
            f"; on {_processes(found)}, as measured, no larger than {choice.fastest:,}, the candidate that reaches a "
            "target soonest"
        )
    if choice.limit is not None:
        text += f"; below {choice.limit:,}, where {_end_of(found, choice.limit)}"
    return f"{text}."


def _processes(found: Assessment) -> str:
    ranks = statistics.mode(run.world_size for run in found.group.runs if run.step_s)
    return f"{ranks} process{'es' * (ranks > 1)}"


def at_what_cost(found: Assessment, choice: Recommendation | None) -> str:
    """Steps, samples, time, money and the end of the recommended candidate against the smallest one."""
    if choice is None:
        timed = sorted({run.global_batch_size for run in found.group.runs if run.step_s})
        known = [f"{number(found.at('step_time', size), 's')} at batch {size:,}" for size in timed]
        measured = f"; a step takes {known[0]}, and {known[-1]}" if len(known) > 1 else ""
        return f"What it costs in steps and samples is not known without that{measured}."
    value = found.critical[0].amount.value
    far = max(choice.batch / value, value / choice.batch) > _FAR
    lead = f"The choice among the candidates is batch {choice.batch:,}" + (", though far from that" if far else "")
    if choice.batch == choice.base:
        fewest = 1 + value / choice.batch
        return (
            f"{lead}, the smallest: it takes {fewest:.3g} times the fewest steps and "
            f"{1 + choice.batch / value:.3g} times the fewest samples; {_money(found, choice)}."
        )
    found_ratios = ratios(found, choice.batch, choice.base)
    return (
        f"{lead}: against batch {choice.base:,} it takes {_times(found_ratios)}; {_money(found, choice)}; "
        f"{_end(found, choice)}."
    )


def _times(found: Ratios) -> str:
    parts = [("the steps", found.steps), ("the samples", found.samples), ("the time", found.time)]
    texts = [f"{_ratio(one)} {what}" for what, one in parts if one is not None]
    missing = "" if found.time is not None else ", in an unknown time"
    return f"{', '.join(texts[:-1])} and {texts[-1]}{missing}"


def _ratio(one: Interval) -> str:
    if math.isnan(one.low):
        interval = "no interval"
    elif is_too_wide(one.low, one.high):
        interval = f"interval {TOO_WIDE}"
    else:
        interval = f"{one.low:.2g} to {one.high:.2g}"
    return f"{one.value:.2g} times ({interval})"


def _money(found: Assessment, choice: Recommendation) -> str:
    one = found.at("price", choice.batch)
    if one.value is None:
        return "its price is not known (cost.device_hour)"
    return f"an epoch costs {number(one, found.quantities['price'].unit)}"


def _end(found: Assessment, choice: Recommendation) -> str:
    """How its run ends, if that was measured at it or at a larger batch."""
    if found.smallest_compared is None or found.smallest_compared == choice.batch or found.quality is None:
        return _NO_GAP
    size = next((size for size in sorted(found.worse) if size >= choice.batch), None)
    if size == choice.batch:
        return _end_of(found, size)
    return _NO_GAP + ("" if size is None or size == choice.limit else f", but {_end_of(found, size)}")


def _end_of(found: Assessment, size: int) -> str:
    one, quality = found.worse[size], found.quality
    assert quality is not None
    return f"{quality.label} at {size:,} is {_worse(one, is_share=quality.higher_is_better)} than at " + (
        f"{found.smallest_compared:,}"
    )


def _worse(one: Difference, *, is_share: bool) -> str:
    """A difference in words, with its interval.

    >>> _worse(Difference(Interval(0.02, 0.01, 0.03), "seeds", 3), is_share=True)
    '2 points worse (95 %: 1 to 3)'
    >>> _worse(Difference(Interval(-0.02, -0.03, 0.01), "seeds", 3), is_share=True)
    '2 points better (95 %: -1 to 3, within the noise)'
    """
    sign = -1 if one.change.value < 0 else 1
    ends = sorted(sign * end for end in (one.change.low, one.change.high))
    change = Interval(sign * one.change.value, *ends)
    word = "better" if sign < 0 else "worse"
    interval = cost_interval(change, is_share=is_share)
    over = f"; one seed, over {one.over}" if one.over and one.over != "seeds" else ""
    return f"{cost_text(change.value, is_share=is_share)} {word} ({interval}{over})"
