"""Price and energy of an epoch, and time, price and energy until the target: time multiplied by what is known."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from largebatch.diagnostics.predictions.cost import CostConfig
from largebatch.records.report.estimates import AtBatch, Quantity, no_quantity, product
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.groups import Group
from largebatch.records.report.shapes import usual_ranks

_NO_STUDY = "no study tells how many steps a target takes. Run `largebatch study`"
_HOUR, _KWH = 3600.0, 3.6e6  # seconds; joules


def cost_quantities(group: Group, found: Mapping[str, Quantity], cost: CostConfig | None = None) -> list[Quantity]:
    """`price`, `energy` of an epoch; `time_to_target`, `price_to_target`, `energy_to_target`.

    Args:
        group: the runs.
        found: the group's `step_time`, `epoch_time` and `steps`.
        cost: what a device costs; None: what the configs of the runs say, if they agree.
    """
    cost = cost_of(group.runs) if cost is None else cost
    timed = [run for run in group.runs if run.step_s]
    ranks = usual_ranks(timed or group.runs) if group.runs else 1
    target = _time_to_target(found["step_time"], found["steps"])
    whole = {"": found["epoch_time"], "_to_target": target}
    quantities = [target]
    for suffix, time in whole.items():
        if suffix and found["steps"].unit != "steps":
            time = no_quantity(time.key, "time until the target", "s", _NO_STUDY)
        until = "until the target" if suffix else "of an epoch"
        quantities += [_price(f"price{suffix}", until, time, cost, ranks)]
        quantities += [_energy(f"energy{suffix}", until, time, cost, group.runs, ranks)]
    return quantities


def cost_of(runs: Sequence[RunRecord]) -> CostConfig:
    """The section `cost` of the configs of runs; a value in which they differ is not known."""
    given: dict[str, str] = {}
    for name in CostConfig.model_fields:
        texts = {run.settings.get(f"cost.{name}", "None") for run in runs} - {"None"}
        if len(texts) == 1:
            given[name] = texts.pop()
    try:
        return CostConfig.model_validate(given, strict=False)
    except ValidationError:  # a config that somebody has edited
        return CostConfig()


def _time_to_target(step: Quantity, steps: Quantity) -> Quantity:
    key, label = "time_to_target", "time until the target"
    if steps.unit != "steps":  # multiples of the fewest, whose number is not known
        label += " over the fewest steps"
    source = f"{steps.source}; times the time of a step: {step.source}"
    return Quantity(key, label, "s", source, product(steps.at, step.at), {}, log=True)


def _price(key: str, until: str, time: Quantity, cost: CostConfig, ranks: int) -> Quantity:
    label, unit = f"price {until}", cost.currency or "in the currency of cost.device_hour"
    if cost.device_hour is None:
        reason = "the price of a device is not known. Give cost.device_hour=PRICE, and cost.currency=EUR"
        return no_quantity(key, label, unit, reason)
    source = f"{time.label} x {ranks} x {cost.device_hour:g} {cost.currency or ''} per device and hour".replace(
        "  ", " "
    )
    return _of(key, label, unit, source, time, ranks * cost.device_hour / _HOUR)


def _energy(key: str, until: str, time: Quantity, cost: CostConfig, runs: Sequence[RunRecord], ranks: int) -> Quantity:
    label, unit = f"energy {until}", "kWh"
    measured = [watts for run in runs if (watts := measured_watts(run)) is not None]
    if measured:
        watts, origin = statistics.median(measured), f"as {len(measured)} of the runs measured it on rank 0's GPU"
    elif cost.device_watts is not None:
        watts, origin = cost.device_watts, "cost.device_watts"
    else:
        reason = (
            "the power of a device is not known: no run measured it, as runs on a GPU do where torch.cuda.power_draw "
            "works (pip install nvidia-ml-py). Give cost.device_watts=WATTS"
        )
        return no_quantity(key, label, unit, reason)
    return _of(
        key, label, unit, f"{time.label} x {ranks} x {watts:.4g} W per device, {origin}", time, ranks * watts / _KWH
    )


def measured_watts(run: RunRecord) -> float | None:
    """Power of rank 0's device, as the run measured it; None: it did not."""
    measured = run.summary.get("measured")
    watts = measured.get("device_watts") if isinstance(measured, dict) else None
    return float(watts) if isinstance(watts, (int, float)) and 0 < watts < 1e6 else None


def _of(key: str, label: str, unit: str, source: str, time: Quantity, factor: float) -> Quantity:
    """Time times a number."""
    at: AtBatch = product(time.at, factor=factor)
    return Quantity(key, label, unit, f"{source}. {time.label.capitalize()}: {time.source}", at, {}, log=True)
