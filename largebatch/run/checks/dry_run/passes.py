"""Forward passes of the dry run, computed as in the run; errors name the samples and shapes that were tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.kernels import NO_DETERMINISTIC_KERNEL, lacks_deterministic_kernel
from largebatch.distributed.runtime import Inputs
from largebatch.gradient.accumulation import forward
from largebatch.run.checks.dry_run.samples import TriedBatch, device_of
from largebatch.training.raised import described, error_text, is_ours


class MisfitError(ValueError):
    """Model, loss and data do not fit together.

    Attributes:
        fact: the message without its remedy.
    """

    def __init__(self, fact: str, remedy: str) -> None:
        self.fact = fact
        super().__init__(f"{fact} {remedy}")


def outputs_of(model: nn.Module, inputs: Inputs, precision: str) -> Any:
    """The model's outputs in the precision of the run: under autocast, then converted to float32."""
    if precision not in ("bf16", "fp16"):
        return forward(model, inputs)
    device = device_of(model).type
    has_bf16 = device != "cuda" or torch.cuda.is_bf16_supported()
    with torch.autocast(device, torch.bfloat16 if has_bf16 else torch.float16):
        outputs = forward(model, inputs)
    return _in_float32(outputs)


def _in_float32(outputs: Any) -> Any:
    """As accelerate's `convert_outputs_to_fp32` does."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
    if isinstance(outputs, Mapping):
        return type(outputs)({name: _in_float32(part) for name, part in outputs.items()})  # type: ignore[call-arg]
    if isinstance(outputs, (tuple, list)):
        parts = [_in_float32(part) for part in outputs]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else type(outputs)(parts)
    return outputs


@contextmanager
def explained(model: nn.Module, batch: TriedBatch, *, during: str) -> Iterator[None]:
    """Turn an exception of the user's code, or of torch, into an error that names the batch that was tried.

    Args:
        model: that was tried.
        batch: that it was tried on.
        during: phase, as in "failed in the forward pass".

    Raises:
        MisfitError: for any exception but those of this package, which pass.
    """
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        fact = f"{named(batch)} failed in {during} with {error_text(error)}."
        raise MisfitError(fact, _hint(model, batch, error)) from error


def _hint(model: nn.Module, batch: TriedBatch, error: Exception) -> str:
    if lacks_deterministic_kernel(error):
        return NO_DETERMINISTIC_KERNEL
    parts = batch.inputs if isinstance(batch.inputs, dict) else {"inputs": batch.inputs}
    weights = next((one.dtype for one in model.parameters() if one.is_floating_point()), None)
    others = [name for name, part in parts.items() if part.dtype != weights]
    if others and weights is not None and any(text in str(error) for text in ("dtype", "type", "not implemented for")):
        found = ", ".join(f"{name} {_short(parts[name].dtype)}" for name in others)
        wide = " or set precision=fp64," if any(parts[name].dtype == torch.float64 for name in others) else ""
        return (
            f"The weights are {_short(weights)} and {found}, which torch does not mix: convert them in the data set,"
            f"{wide} or in the model's forward."
        )
    return "Do the model's inputs and outputs and the labels fit the data?"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def named(batch: TriedBatch) -> str:
    """The batch that was tried: number of samples, ids, types and shapes."""
    ids = batch.loaded.ids.tolist()
    shown = ", ".join(map(str, ids[:4])) + (", ..." if len(ids) > 4 else "")
    count = "one sample" if batch.size == 1 else f"{batch.size} samples"
    place = "" if batch.size == batch.planned else f" in place of {batch.planned}"
    return f"a micro-batch of {count}{place} ({shown}: {described(batch.inputs, batch.targets, batch.ids)})"
