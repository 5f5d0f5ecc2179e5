"""What the throughput of a run is measured against: tokens of a sample, operations of the model, the device's peak."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from largebatch.batch.plan import BatchPlan
from largebatch.diagnostics.utilisation.model_flops import NotCountedError, model_flops
from largebatch.diagnostics.utilisation.peaks import peak_tflops
from largebatch.run.parts import build_loader
from largebatch.run.prepare import Prepared
from largebatch.training.observers.throughput import Throughput

_TERA = 1e12


@dataclass(frozen=True)
class Utilisation:
    """The units of throughput, and a row of the plan that says where they come from; None: no peak is known."""

    throughput: Throughput
    row: tuple[str, str, str] | None = None


def utilisation_of(prepared: Prepared) -> Utilisation:
    """The units of the run's throughput. Operations are counted only where the peak of the device is known."""
    tokens, device, precision = prepared.numbers.tokens_per_sample, prepared.decisions.device, prepared.config.precision
    peak, source = precision.peak_tflops, "precision.peak_tflops"
    if peak is None:
        peak, source = peak_tflops(device.name, precision.compute), f"data sheet of {device.name}"
    if peak is None:
        return Utilisation(Throughput(tokens))
    try:
        flops = counted_flops(prepared)
    except NotCountedError as error:
        return Utilisation(Throughput(tokens), ("model FLOPs", "not counted", f"{error}: train/mfu is left out"))
    each = f"{flops:.4g} per sample" + ("" if tokens is None else f", {flops / tokens:.4g} per token")
    return Utilisation(
        Throughput(tokens, flops, peak * _TERA),
        ("model FLOPs", each, f"forward and backward, counted; peak {peak:g} TFLOP/s per device: {source}"),
    )


def counted_flops(prepared: Prepared) -> float:
    """Operations of the model for one sample, see `model_flops`.

    Raises:
        NotCountedError: if they cannot be counted.
    """
    loader = build_loader(prepared, 0, plan=BatchPlan.solve(global_batch_size=1, world_size=1), num_workers=0)
    with torch.no_grad():
        sample = next(iter(loader.micro_batches(0, 1)))
    return model_flops(prepared.model, sample.inputs)
