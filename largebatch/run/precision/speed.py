"""Layout, kernels and compilation: what the model and the sizes of micro-batches gain from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from largebatch.models.layout import convolutions_2d
from largebatch.optim.kernels.triton_steps import has_triton
from largebatch.optim.kernels.working import reason_against
from largebatch.run.config.precision import PrecisionConfig
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers
from largebatch.run.precision.device import Decision, Device, has_kernels

_FEW_SIZES = 2
# Optimizers that take fused kernels of torch for CUDA, and what these gain.
_FUSED = dict.fromkeys(
    ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD"),
    "one launch for many parameters, and none of fp16 waits for the host",
) | {"largebatch.optim.MuonWithAdamW": "one launch for many parameters of AdamW; Muon has no fused kernels"}


def channels_last(device: Device, precision: PrecisionConfig, compute: str, model: nn.Module | None) -> Decision:
    """The layout of two-dimensional convolutions; by default the one that tensor cores take without a copy."""
    if precision.channels_last is not None:
        return Decision(precision.channels_last, "precision.channels_last")
    if model is None or not convolutions_2d(model):
        return Decision(False, "the model has no two-dimensional convolution")
    if not device.is_gpu:
        return Decision(False, "no GPU; a GPU would use it in bf16")
    if compute not in ("bf16", "fp16"):
        return Decision(False, f"for bf16 and fp16, not for {compute}")
    return Decision(True, "convolutions on tensor cores take this layout without a copy")


def cudnn_benchmark(
    device: Device, config: TrainConfig, deterministic: bool | None, model: nn.Module | None
) -> Decision:
    """Whether cuDNN measures its kernels on each new shape: where there are convolutions and few shapes."""
    if not device.is_gpu:
        return Decision(None, "no GPU")
    if model is None or not any(isinstance(one, nn.modules.conv._ConvNd) for one in model.modules()):
        return Decision(None, "the model has no convolution")
    if deterministic:
        return Decision(False, "deterministic kernels are wanted")
    if config.data.skips:
        return Decision(None, "data.on_bad_sample=skip makes micro-batches of any size")
    return Decision(True, "few shapes: the first pass of each finds its fastest convolutions")


def fused(device: Device, optimizer: dict[str, Any], model: nn.Module | None) -> Decision:
    """Whether an optimizer of torch takes its fused kernels; a value of `fused` or `foreach` that is given stays."""
    name = str(optimizer.get("_target_"))
    if given := [key for key in ("fused", "foreach") if key in optimizer]:
        return Decision(None, f"optimizer.{given[0]}")
    if not device.is_gpu:
        return Decision(None, "no GPU")
    if model is None:
        return Decision(None, "there is no model")
    if name not in _FUSED:
        return Decision(None, f"not known of {name}; where it takes the argument, +optimizer.fused=true asks for them")
    if optimizer.get("differentiable"):
        return Decision(None, "optimizer.differentiable")
    if any(getattr(one, "sparse", False) for one in model.modules()):
        return Decision(None, "gradients of the model are sparse")
    if not all(one.is_floating_point() for one in model.parameters()):
        return Decision(None, "parameters of the model are no real numbers")
    return Decision(True, f"{name} on a GPU: {_FUSED[name]}")


def compiled_optimizer(device: Device, optimizer: dict[str, Any]) -> Decision:
    """Whether LARS and LAMB step in compiled kernels; a path that is given stays. On this device they are tried."""
    if not has_kernels(optimizer):
        return Decision(None, f"{optimizer.get('_target_')} has none")
    if (given := optimizer.get("compile")) is not None:
        return Decision(bool(given), "optimizer.compile")
    if paths := [key for key in ("fused", "foreach") if optimizer.get(key) is not None]:
        return Decision(None, f"optimizer.{paths[0]}")
    language = "Triton" if device.is_gpu else "C"
    if device.is_gpu and not torch.cuda.is_available():  # imagined
        reason = None if has_triton() else "Triton is missing"
    else:
        own = torch.device("cuda", torch.cuda.current_device()) if device.is_gpu else torch.device("cpu")
        reason = reason_against(own)
    if reason is not None:
        return Decision(False, f"slower by torch's kernels: {reason}")
    return Decision(
        True, f"in {language}; torch's kernels, +optimizer.compile=false, are slower, with other last digits"
    )


def has_few_sizes(config: TrainConfig, numbers: RunNumbers) -> bool:
    """Whether micro-batches have one size or two: then each is compiled by itself."""
    varies = config.data.skips or config.batch.on_out_of_memory == "lower"
    return not varies and len(_sizes(numbers)) <= _FEW_SIZES


def _sizes(numbers: RunNumbers) -> list[int]:
    return sorted({size for plan in numbers.ramp.plans for size in plan.micro_batch_sizes})


def compilation(config: TrainConfig, numbers: RunNumbers | None) -> Decision:
    """Whether the model is compiled, and for which sizes of micro-batches; never are they padded."""
    how = config.precision.compile
    if not how or numbers is None:
        return Decision(how, "precision.compile")
    sizes = _sizes(numbers)
    if len(sizes) == 1:
        return Decision(how, f"once: every micro-batch has {sizes[0]} samples")
    plan, pinned = numbers.plan, config.batch.micro
    unit = pinned or plan.world_size * plan.grad_accum_steps
    below = plan.global_batch_size // unit * unit
    equal = [f"batch.total={total}" for total in (below, below + unit) if total > 0 and total != plan.global_batch_size]
    each = "each by itself" if has_few_sizes(config, numbers) else "the second one for all sizes"
    return Decision(how, f"micro-batches of {sizes[0]} to {sizes[-1]} samples, {each}; equal with {' or '.join(equal)}")
