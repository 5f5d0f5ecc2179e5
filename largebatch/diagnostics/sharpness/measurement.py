"""All sharpness measures of one model on one fixed subset."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.random_keys import stream_key
from largebatch.diagnostics.sharpness.curvature import (
    Estimate,
    TopEigenvalue,
    gaussian,
    hutchinson_trace,
    rademacher,
    top_eigenvalue,
)
from largebatch.diagnostics.sharpness.own_samples import Samples, as_samples, known_loss, own_job
from largebatch.diagnostics.sharpness.rank0_decides import LossOnRequest
from largebatch.diagnostics.sharpness.rises import BoxSharpness, ascent_rise, box_sharpness
from largebatch.diagnostics.sharpness.settings import LandscapeSettings, SharpnessSettings
from largebatch.diagnostics.sharpness.slices import filter_normalized, line, plane
from largebatch.diagnostics.sharpness.subset import SubsetLoss
from largebatch.distributed.own_job import Job
from largebatch.gradient.snapshots import measuring


@dataclass(frozen=True)
class Slices:
    """Losses along filter-normalised directions, at `line_positions` and on the grid of `plane_positions`.

    Rows of the plane follow the second direction.

    Source: Li et al. 2018, section 4.
    """

    line_positions: list[float] = field(default_factory=list)
    line: list[float] = field(default_factory=list)
    plane_positions: list[float] = field(default_factory=list)
    plane: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Sharpness:
    """Result of the measurement; losses are means per unit.

    Attributes:
        loss: loss of the subset.
        gradient_norm: norm of its gradient.
        lambda_max: largest eigenvalue of its Hessian.
        trace: trace of its Hessian.
        box: Keskar's sharpness; None if not requested.
        m_sharpness: rise along a group's own ascent step, averaged over whole groups of m samples.
        slices: losses for plots; empty if not requested.
    """

    loss: float
    gradient_norm: float
    lambda_max: TopEigenvalue
    trace: Estimate
    box: BoxSharpness | None
    m_sharpness: Estimate
    slices: Slices


def measure_sharpness(
    module: nn.Module,
    loss: Any,
    data: Any,
    runtime: Job | None = None,
    settings: SharpnessSettings = SharpnessSettings(),  # noqa: B008  frozen
    *,
    seed: int = 0,
    landscape: LandscapeSettings | None = None,
    num_samples: int | None = None,
    micro_batch_size: int = 128,
) -> Sharpness | None:
    """Measure; every rank calls it, rank 0 gets the result. The module and all generators are restored.

    Args:
        module: the model, in fp32 or fp64, the same on all ranks; in `DistributedDataParallel`, too.
        loss: `nn.CrossEntropyLoss()`, `torch.nn.functional.cross_entropy`, or others: see `losses.as_loss`. Without
            smoothing.
        data: samples to measure, without augmentation: a map-style data set, which is shared out to the ranks; or a
            `DataLoader`, a list of batches or one batch (inputs, targets), which each rank has of its own.
        runtime: the job; None: that of torch.distributed's default process group, or this process.
        settings: settings of eigenvalue, trace and m-sharpness.
        seed: seed of all random vectors, and of the choice of samples.
        landscape: settings of box and slices; None: neither is measured.
        num_samples: random samples of a data set; None: all.
        micro_batch_size: samples of a data set per forward pass.

    Raises:
        ValueError: if there is no group of `settings.m` samples, or a loss per sample cannot be had.
        FloatingPointError: if the loss or its gradient is not finite.

    >>> inputs = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).div(2**0.5)  # the loss w1^2 + w2^2 / 4: curvatures 2 and 1/2
    >>> batch, model = (inputs, torch.zeros(2, 1)), nn.Linear(2, 1, bias=False)
    >>> found = measure_sharpness(model, nn.MSELoss(), batch, settings=SharpnessSettings(m=1))
    >>> round(found.lambda_max.value, 4), round(found.trace.value, 4)
    (2.0, 2.5)
    """
    module, runtime = own_job(module, runtime)
    subset = as_samples(data, runtime, count=num_samples, seed=seed, micro_batch_size=micro_batch_size)
    loss = known_loss(loss, module, subset, runtime)
    subset.num_groups(settings.m)  # before the first sum over ranks
    with measuring(module):
        whole = SubsetLoss(module, loss, subset.batches(runtime), reduce=runtime.sum_in_place)
        on_request = LossOnRequest(whole, runtime)
        weights = whole.weights
        value, gradient = whole.value_and_gradient(weights)
        if not math.isfinite(value) or not bool(gradient.isfinite().all()):
            raise FloatingPointError(
                f"The loss is {value}, or its gradient is not finite: there is nothing to measure."
            )
        rises = _rises(module, loss, subset, weights, runtime, settings)
        return on_request.run(
            lambda on_request: Sharpness(
                loss=value,
                gradient_norm=float(gradient.double().norm()),
                lambda_max=_lambda_max(on_request, weights, settings, seed),
                trace=_trace(on_request, weights, settings, seed),
                box=None if landscape is None else _box(on_request, weights, landscape, seed),
                m_sharpness=Estimate.of(rises),
                slices=Slices() if landscape is None else _slices(on_request, whole, weights, landscape, seed),
            )
        )


def _rises(
    module: nn.Module, loss: Any, subset: Samples, weights: Tensor, runtime: Job, settings: SharpnessSettings
) -> list[float]:
    """The rise of every group, in group order, on all ranks; bitwise independent of the rank that computed it."""
    rises = torch.zeros(subset.num_groups(settings.m), dtype=torch.float64, device=weights.device)
    for number, batches in subset.groups(settings.m, runtime):
        group = SubsetLoss(module, loss, batches)
        rises[number] = ascent_rise(group.value_and_gradient, group.value, weights, rho=settings.rho)
    runtime.sum_in_place(rises)
    return [float(rise) for rise in rises]


def _lambda_max(on_request: LossOnRequest, weights: Tensor, settings: SharpnessSettings, seed: int) -> TopEigenvalue:
    return top_eigenvalue(
        on_request.hessian_vector_product,
        gaussian(weights, stream_key(seed, "lanczos start")),
        max_iterations=settings.lanczos_iterations,
        tolerance=settings.lanczos_tolerance,
    )


def _trace(on_request: LossOnRequest, weights: Tensor, settings: SharpnessSettings, seed: int) -> Estimate:
    keys = (stream_key(seed, "trace probe", number) for number in range(settings.trace_samples))
    return hutchinson_trace(on_request.hessian_vector_product, (rademacher(weights, key) for key in keys))


def _box(on_request: LossOnRequest, weights: Tensor, settings: LandscapeSettings, seed: int) -> BoxSharpness | None:
    if settings.box_iterations == 0:
        return None
    generator = torch.Generator().manual_seed(stream_key(seed, "box start"))
    start = torch.rand(weights.shape, generator=generator, dtype=torch.float64).to(weights) * 2 - 1
    return box_sharpness(
        on_request.value_and_gradient, weights, start, eps=settings.box_eps, max_iterations=settings.box_iterations
    )


def _slices(
    on_request: LossOnRequest, whole: SubsetLoss, weights: Tensor, settings: LandscapeSettings, seed: int
) -> Slices:
    first, second = (_direction(whole, weights, seed, number) for number in range(2))
    on_line, on_plane = (_positions(settings.slice_radius, n) for n in (settings.line_points, settings.plane_points))
    losses_on_plane = plane(on_request.value, weights, (first, second), on_plane)
    return Slices(on_line, line(on_request.value, weights, first, on_line), on_plane, losses_on_plane)


def _direction(whole: SubsetLoss, weights: Tensor, seed: int, number: int) -> Tensor:
    raw = gaussian(weights, stream_key(seed, "slice direction", number))
    parts = filter_normalized(whole.split(raw), whole.split(weights))
    return torch.cat([part.reshape(-1) for part in parts])


def _positions(radius: float, count: int) -> list[float]:
    positions: list[float] = torch.linspace(-radius, radius, count, dtype=torch.float64).tolist()
    return positions
