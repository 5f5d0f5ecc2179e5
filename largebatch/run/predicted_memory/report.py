"""A predicted memory as rows of a table, and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from largebatch.diagnostics.memory.budget import shown_bytes
from largebatch.run.plan_report import PlanRow
from largebatch.run.predicted_memory.prediction import FRAGMENTED, OUTSIDE_BYTES, Fit, PredictedMemory

# Experience with A100 and H100; the workspace of cuBLAS is from torch's notes on CUDA. Nothing of it was measured here.
NOT_COUNTED = (
    ("CUDA context and NCCL", "0.6 to 1.5 GiB", "NCCL grows with the number of its channels and peers"),
    ("workspaces", "32 MiB to 1 GiB", "cuBLAS: 8 MiB, on Hopper 32 MiB; cuDNN: as its algorithms ask"),
    ("fragmentation", "5 to 10 %", "less with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
)


def memory_rows(predicted: PredictedMemory) -> list[PlanRow]:
    """Rows (quantity, value, source): the peak and its parts, the largest micro-batch, what is not counted."""
    step = predicted.step
    where = "in the forward and backward passes" if step.in_passes == step.peak else "in the update"
    micro = f"{predicted.num_micro_batches} x {predicted.micro_batch_size} samples"
    rows = [
        ("weights", shown_bytes(predicted.weights), "parameters and buffers"),
        ("gradients", shown_bytes(step.gradients), f"of {shown_bytes(step.all_gradients)}, what is alive at the peak"),
        ("optimizer state", shown_bytes(predicted.optimizer), "after its first steps"),
        *([("average of weights", shown_bytes(predicted.average), "ema")] if predicted.average else []),
        ("activations and the rest", shown_bytes(predicted.activations), f"{micro}; each {_per_sample(predicted)}"),
        ("peak of a rank", shown_bytes(step.peak), f"{where}, at {step.operation}"),
        ("peak of an evaluation", shown_bytes(predicted.evaluation), "observers.evaluation.micro samples at once"),
    ]
    if predicted.fit is not None:
        rows.append(_fit_row(predicted, predicted.fit))
    elif predicted.is_joint:
        rows.append(("largest micro-batch", "any", "batch_norm=exact keeps a rank's whole share; use more ranks"))
    if _is_on_gpu(predicted):
        rows += [(f"not counted: {name}", value, source) for name, value, source in NOT_COUNTED]
    return rows


def memory_record(predicted: PredictedMemory) -> dict[str, Any]:
    """The prediction as plain values, in bytes."""
    return {**asdict(predicted), "peak": predicted.step.peak, "activations": predicted.activations}


def _is_on_gpu(predicted: PredictedMemory) -> bool:
    return predicted.device == "cuda"


def _per_sample(predicted: PredictedMemory) -> str:
    return f"sample adds {shown_bytes(max(predicted.per_sample, 0))}"


def _fit_row(predicted: PredictedMemory, fit: Fit) -> PlanRow:
    usable = f"{shown_bytes(fit.usable)} for tensors"
    if _is_on_gpu(predicted):
        usable = f"{shown_bytes(fit.budget)} less {shown_bytes(OUTSIDE_BYTES)} and {FRAGMENTED - 1:.0%}: {usable}"
    if not fit.size:
        least = predicted.weights + predicted.optimizer + predicted.step.all_gradients
        return "largest micro-batch", "none", f"{usable}; weights, gradients and state take {shown_bytes(least)}"
    whole = ", a rank's whole share" if fit.size == fit.share else ""
    return "largest micro-batch", f"{fit.key}={fit.size}", f"peak {shown_bytes(fit.peak)}{whole}; {usable}"
