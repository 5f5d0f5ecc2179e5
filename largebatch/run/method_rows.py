"""What a run does besides plain steps from drawn weights, for the plan: start, freezing, mixing, average, early end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch.run.augmentation import augment_rows
from largebatch.run.config.model_node import weights_of
from largebatch.run.prepare import Prepared
from largebatch.run.watched_keys import patience_of

PlanRow = tuple[str, str, str]


def method_rows(prepared: Prepared) -> list[PlanRow]:
    """Rows (quantity, value, source) of what the run does so; none for a plain run."""
    of_start, average = [*_start_rows(prepared), *_frozen_rows(prepared)], [*_average_rows(prepared)]
    mixed = [*_order_rows(prepared), *augment_rows(prepared.config)]
    return [*of_start, *mixed, *_ascent_rows(prepared), *average, *_early_end(prepared)]


def method_record(prepared: Prepared) -> dict[str, Any]:
    """The same as plain values."""
    return {what: {"value": value, "why": why} for what, value, why in method_rows(prepared)}


def _start_rows(prepared: Prepared) -> Iterator[PlanRow]:
    if (start := prepared.start_weights) is not None:
        yield "initial weights", start.value, start.why
    elif (source := weights_of(prepared.config.model)) is not None:
        yield "initial weights", "not read", f"model.weights={source.file}"


def _frozen_rows(prepared: Prepared) -> Iterator[PlanRow]:
    parameters = list(prepared.model.parameters())
    frozen = [one for one in parameters if not one.requires_grad]
    if not frozen:
        return
    shares = (f"{sum(one.numel() for one in part):,}" for part in (frozen, parameters))
    why = "parameters.freeze" if prepared.config.parameters.freeze else "as the model has them"
    yield (
        "frozen",
        f"{len(frozen)} of {len(parameters)} tensors",
        "{} of {} numbers; ".format(*shares) + ", ".join([why, *_frozen_norms(prepared.model)]),
    )


def _ascent_rows(prepared: Prepared) -> Iterator[PlanRow]:
    sam, ranks = prepared.config.sam, prepared.numbers.plan.world_size
    if sam.rho is None:
        return
    if sam.is_global:
        whose = "of the global batch" + "; one more gradient all-reduce per step" * (ranks > 1)
    else:
        whose = f"of each micro-batch of {prepared.config.batch.micro}; nothing more is sent"
    yield (
        "sharpness-aware",
        f"rho {sam.rho:g}" + ", adaptive" * sam.adaptive,
        f"climbs by the gradient {whose}; two passes per step, a copy of the weights",
    )


def _average_rows(prepared: Prepared) -> Iterator[PlanRow]:
    average, batch = prepared.numbers.average, prepared.numbers.plan.global_batch_size
    if average is None:
        return
    begins = f"from {average.start:,} samples on" if average.start else "from the initial weights on"
    every = f", every {average.every} steps" * (average.every > 1)
    num_bytes = sum(one.nbytes for one in prepared.model.parameters() if one.requires_grad)
    value, why = "plain mean", "ema.uniform"
    if (half_life := average.half_life) is not None:
        value = f"half-life {half_life:,.6g} samples"
        growing = " at first" * (len(prepared.numbers.ramp.plans) > 1)
        why = f"{half_life / batch:,.4g} steps; decay {average.decay(batch):.6g} per step of {batch:,}{growing}"
    yield (
        "average of weights",
        value,
        f"{why}; {begins}{every}; {num_bytes / 1e6:,.3g} MB per rank; buffers are the run's own",
    )


def _frozen_norms(model: nn.Module) -> Iterator[str]:
    norms = [one for one in model.modules() if isinstance(one, _NormBase) and one.running_mean is not None]
    if held := sum(not one.training for one in norms):
        yield f"{held} of {len(norms)} batch norms keep their statistics"
    elif norms:
        yield "all batch norms move their statistics"


def _order_rows(prepared: Prepared) -> Iterator[PlanRow]:
    if (node := prepared.config.data.order) is not None:
        name = node if isinstance(node, str) else node["_target_"].rpartition(".")[2]
        yield "sample order", name, f"data.order; an epoch is {prepared.numbers.num_samples:,} draws"


def _early_end(prepared: Prepared) -> Iterator[PlanRow]:
    options = prepared.config.observers.early_stopping
    if options.metric is not None:
        patience, by = patience_of(prepared.config, prepared.numbers), options.min_delta
        why = f"without a better {options.metric}" + (f" by more than {by:g}" if by else "")
        yield "early stopping", f"after {patience:,} samples", why
