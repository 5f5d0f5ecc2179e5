"""Optimizers that take turns on the same parameters and gradients, in one process."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.experiments.stopwatch import seconds_of
from largebatch.models import resnet50
from largebatch.optim import LAMB, LARS
from largebatch.optim.kernels.working import reason_against

WARMUP_ROUNDS = 2

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Algorithm:
    """A large-batch optimizer of ours, its rival in torch, and the same optimizer in other packages.

    Rates are small: weights hardly move in a few hundred steps on one gradient.
    """

    name: str
    rival: tuple[str, MakeOptimizer]
    ours: Callable[..., Optimizer]
    elsewhere: Sequence[tuple[str, str]]
    options: dict[str, Any]
    bytes_limit: float  # bytes per float32 parameter that have to move, over the rival's


ALGORITHMS = {
    "LAMB": Algorithm(
        "LAMB",
        ("torch AdamW", lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.01, fused=True)),
        partial(LAMB, lr=1e-6, weight_decay=0.01),
        (("timm.optim", "Lamb"), ("pytorch_optimizer", "Lamb"), ("torch_optimizer", "Lamb")),
        {"lr": 1e-6, "weight_decay": 0.01},
        40 / 28,
    ),
    "LARS": Algorithm(
        "LARS",
        (
            "torch SGD",
            lambda params: torch.optim.SGD(params, lr=1e-6, momentum=0.9, weight_decay=1e-4, fused=True),
        ),
        partial(LARS, lr=1e-3, momentum=0.9, weight_decay=1e-4),
        (("timm.optim", "Lars"), ("pytorch_optimizer", "LARS"), ("torch_optimizer", "LARS")),
        {"lr": 1e-6, "momentum": 0.9, "weight_decay": 1e-4},
        28 / 20,
    ),
}


@dataclass
class Result:
    """Times and memory of one optimizer; `extra_memory` is a share of the parameters' memory."""

    name: str
    first_step_s: float
    extra_memory: float = 0.0
    milliseconds: list[float] = field(default_factory=list)


def contestants(algorithm: Algorithm, device: str = "cpu") -> tuple[list[tuple[str, MakeOptimizer]], list[str]]:
    """(name, factory) of the rival, ours and installed packages' optimizers; and the absent ones, each with its cause.

    Names are short, so that a row fits in 80 columns: ours is "LAMB", another package's is the package. Ours is the
    default, compiled where that works; then torch's kernels are a row of their own.
    """
    found = [algorithm.rival, (algorithm.name, algorithm.ours)]
    absent = []
    if missing := reason_against(torch.device(device)):
        absent.append(f"{algorithm.name} compiled, its default ({missing})")
    else:
        other = "fused" if device == "cpu" else "foreach"
        found.append((f"{algorithm.name} {other}", partial(algorithm.ours, **{other: True})))
    for module, name in algorithm.elsewhere:
        try:
            made = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            absent.append(f"{module}.{name} ({error})")
            continue
        found.append((module.removesuffix(".optim"), partial(made, **algorithm.options)))
    return found, absent


def race(
    algorithm: Algorithm, rivals: Sequence[tuple[str, MakeOptimizer]], shapes: str, rounds: int, device: str
) -> tuple[list[Result], int]:
    """Time the steps of all rivals, in a new random order every round.

    Returns:
        A result per rival, in their order, and the number of parameters.
    """
    params = _parameters(shapes, device)
    num_params = sum(param.numel() for param in params)
    results, steps = [], []
    for name, make in rivals:
        optimizer = make(params)
        step: Callable[[], object] = optimizer.step
        results.append(Result(name, seconds_of(step, device)))
        results[-1].extra_memory = peak_extra_bytes(step, device) / (4 * num_params)
        steps.append(step)
    order = list(range(len(rivals)))
    shuffle = random.Random(0).shuffle
    # On an accelerator a step takes about as long as starting and waiting for it does.
    repeats = 1 if device == "cpu" else 10
    for number in range(WARMUP_ROUNDS + rounds):
        shuffle(order)
        for place in order:
            seconds = seconds_of(steps[place], device, repeats)
            if number >= WARMUP_ROUNDS:
                results[place].milliseconds.append(1000 * seconds)
    assert all(bool(param.isfinite().all()) for param in params), "a weight is not finite: the times mean nothing"
    return results, num_params


def peak_extra_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """Peak memory during a call of `step`, beyond the memory in use before it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        allocated += change.nbytes()
        peak = max(peak, allocated)
    return peak


def _parameters(shapes: str, device: str) -> list[nn.Parameter]:
    """Random weights and gradients of a usual size in the shapes of a model."""
    generator = torch.Generator().manual_seed(0)

    def normal(shape: Sequence[int], scale: float) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device)

    params = []
    for shape in shapes_of(shapes):
        param = nn.Parameter(normal(shape, 0.05))
        param.grad = normal(shape, 0.01)
        params.append(param)
    return params


def shapes_of(name: str) -> list[tuple[int, ...]]:
    """Shapes of all parameters of "resnet50" (1,000 classes) or "bert_base" (with pooler, without heads)."""
    if name == "resnet50":
        with torch.device("meta"):
            return [tuple(param.shape) for param in resnet50(1000).parameters()]
    width, wide = 768, 4 * 768

    def linear(num_inputs: int, num_outputs: int) -> list[tuple[int, ...]]:
        return [(num_outputs, num_inputs), (num_outputs,)]

    norm: list[tuple[int, ...]] = [(width,), (width,)]
    layer = 4 * linear(width, width) + norm + linear(width, wide) + linear(wide, width) + norm
    embeddings = [(30522, width), (512, width), (2, width)]  # word pieces, positions, segments
    return [*embeddings, *norm, *(12 * layer), *linear(width, width)]
