"""Measure the variance of mini-batch gradients over batch sizes, on all ranks of a job."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import keyed_uniforms, stream_key
from largebatch.diagnostics.closed_forms import GradientNoise
from largebatch.diagnostics.noise.nested_groups import NestedGroups, require_nested
from largebatch.diagnostics.noise.sampled_moments import SampledMoments, moments_of_sample
from largebatch.diagnostics.noise.variance_law import VarianceCurve, variance_curve
from largebatch.diagnostics.sharpness.subset import Batch, FixedSubset
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import forward
from largebatch.gradient.snapshots import measuring

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VarianceSettings:
    """Settings of the measurement.

    Attributes:
        seed: seed of the draws.
        batch_sizes: B, ascending, each a multiple of the previous one.
        replications: draws of the largest batch, with and without replacement each.
    """

    seed: int
    batch_sizes: tuple[int, ...]
    replications: int


@dataclass(frozen=True)
class GradientVariance:
    """Result of the measurement.

    Attributes:
        noise: |G|^2 and tr(Sigma) of the subset, exact, from the gradient of each of its samples.
        moments: estimates for the data set from which the subset is drawn.
        with_replacement, without_replacement: variance over the batch size, of batches drawn from the subset.
    """

    noise: GradientNoise
    moments: SampledMoments
    with_replacement: VarianceCurve
    without_replacement: VarianceCurve


def measure_variance(
    module: nn.Module,
    loss: Any,
    subset: FixedSubset,
    runtime: Runtime,
    settings: VarianceSettings,
    *,
    num_samples: int,
) -> GradientVariance | None:
    """Measure; every rank calls it, rank 0 gets the result. The module and all generators are restored.

    The gradient of a sample is taken in eval mode: without dropout, and with the running statistics of batch norm,
    since batch statistics would make it depend on other samples. Batches are drawn from the subset, which represents
    the whole data set (D). A replication is one draw of the largest batch, cut into nested groups (`NestedGroups`) and
    computed by one rank. Ranks exchange numbers and one gradient.

    Samples may have unequal numbers u_i of units (tokens). Let s_i be the gradient of a sample's summed loss,
    G = sum s_i / sum u_i, and u the mean number of units. The deviation of a sample is (s_i - u_i G)/u. The mean
    deviation of a batch is its g_B - G to first order in its number of units (Cochran 1977, Sampling Techniques,
    section 6.3), and exactly if all u_i are equal.

    Cost: a gradient per sample of the subset and of 2 `replications` largest batches. Memory per rank: at most one
    float64 gradient per batch size, and three more.

    Args:
        module: the unwrapped model, in fp32 or fp64, the same on all ranks.
        loss: see `largebatch.losses.Loss`; it must not compare samples.
        subset: samples to measure.
        runtime: the job.
        settings: settings of the measurement.
        num_samples: size of the data set from which the subset was drawn at random.

    Raises:
        ValueError: if the batch sizes do not nest (see `require_nested`), no sample has a unit, or all gradients are
            equal.
        FloatingPointError: if a gradient is not finite.
    """
    require_nested(settings.batch_sizes, num_samples=len(subset.ids))
    with measuring(module):
        deviations = _Deviations.around_mean(module, loss, subset, runtime)
        table = _table_of_samples(deviations, subset, runtime)
        measured = _measured(deviations, subset, runtime, settings)
    sq_deviations, along_mean = table.cpu().numpy()
    sq_norm = float(deviations.mean @ deviations.mean)
    trace = float(sq_deviations.mean())
    if not math.isfinite(trace + sq_norm):
        raise FloatingPointError("The gradient of a sample is not finite: there is nothing to measure.")
    if trace == 0:
        raise ValueError(f"All {len(subset.ids)} samples have the same gradient: there is no variance to measure.")
    if not runtime.is_main:
        return None
    noise = GradientNoise(len(subset.ids), sq_norm, trace)
    return GradientVariance(
        noise=noise,
        moments=moments_of_sample(sq_deviations, along_mean, sq_norm, num_samples=num_samples),
        with_replacement=variance_curve(measured[0], settings.batch_sizes, noise, replacement=True),
        without_replacement=variance_curve(measured[1], settings.batch_sizes, noise, replacement=False),
    )


@dataclass(frozen=True)
class _Deviations:
    """Computes deviations of gradients from their mean over the subset; flat, [p], float64."""

    module: nn.Module
    loss: Any
    parameters: list[nn.Parameter]
    mean: Tensor
    mean_units: float

    @classmethod
    def around_mean(cls, module: nn.Module, loss: Any, subset: FixedSubset, runtime: Runtime) -> _Deviations:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        num_parameters = sum(parameter.numel() for parameter in parameters)
        total = torch.zeros(num_parameters + 1, dtype=torch.float64, device=runtime.device)
        unknown = cls(module, loss, parameters, total, 1.0)
        for batch in subset.stream(runtime):
            gradient, units = unknown._sums(batch)
            total[:-1] += gradient
            total[-1] += units
        runtime.sum_in_place(total)
        num_units = float(total[-1])
        if not num_units:
            raise ValueError("The samples have 0 units in total: a mean needs at least one. Is every token masked?")
        return dataclasses.replace(unknown, mean=total[:-1] / num_units, mean_units=num_units / len(subset.ids))

    def of(self, batch: Batch) -> Tensor:
        """Sum of the deviations of the samples of a batch, in a new tensor."""
        gradient, units = self._sums(batch)
        return gradient.sub_(self.mean, alpha=units).div_(self.mean_units)

    def _sums(self, batch: Batch) -> tuple[Tensor, float]:
        """Gradient of the summed loss, and its number of units."""
        inputs, targets = batch
        loss = self.loss.loss_per_sample(forward(self.module, inputs), targets).sum()
        slopes = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        flat = torch.cat([slope.reshape(-1) for slope in slopes])
        return flat.to(torch.float64, copy=True), float(self.loss.units_per_sample(targets).sum())


def _table_of_samples(deviations: _Deviations, subset: FixedSubset, runtime: Runtime) -> Tensor:
    """|d_i|^2 and d_i'G of every sample, [2, n], in sample order, on all ranks."""
    table = torch.zeros((2, len(subset.ids)), dtype=torch.float64, device=runtime.device)
    for number, batches in subset.groups(1, runtime):
        deviation = deviations.of(batches[0])
        table[0, number] = deviation @ deviation
        table[1, number] = deviation @ deviations.mean
    runtime.sum_in_place(table)
    return table


def _measured(
    deviations: _Deviations, subset: FixedSubset, runtime: Runtime, settings: VarianceSettings
) -> npt.NDArray[np.float64]:
    """Mean squared deviation at every size, [with and without replacement, replications, sizes], on all ranks."""
    sizes, replications = settings.batch_sizes, settings.replications
    drawn = dataclasses.replace(subset, ids=subset.ids[places_of_draws(len(subset.ids), settings)])
    # Samples per gradient: the largest number within the memory limit that fills whole groups of the first size.
    at_once = math.gcd(sizes[0], subset.micro_batch_size)
    table = torch.zeros((2 * replications, len(sizes)), dtype=torch.float64, device=runtime.device)
    for number, batches in drawn.groups(sizes[-1], runtime):
        groups = NestedGroups(sizes)
        for batch in batches:
            for part in _parts(batch, at_once):
                groups.add(deviations.of(part), at_once)
        table[number] = torch.tensor(groups.mean_sq_norms(), dtype=torch.float64)
    runtime.sum_in_place(table)
    return table.view(2, replications, len(sizes)).cpu().numpy()


def places_of_draws(count: int, settings: VarianceSettings) -> Int64Array:
    """Indices below `count` of all draws of the largest batch, int64 [2 replications x largest batch].

    Draws with replacement come first, then those without; a function of the seed alone.
    """
    size = settings.batch_sizes[-1]
    drawn = []
    for replacement in (True, False):
        for number in range(settings.replications):
            key = stream_key(settings.seed, "variance", "with" if replacement else "without", number)
            if replacement:
                drawn.append((keyed_uniforms(key, np.arange(size), 1)[:, 0] * count).astype(np.int64))
            else:
                drawn.append(SampleOrder(count, key).ids(0, size))
    return np.concatenate(drawn)


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch cut into batches of `size` samples."""
    inputs, targets = batch
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        if isinstance(inputs, dict):
            yield {name: value[part] for name, value in inputs.items()}, targets[part]
        else:
            yield inputs[part], targets[part]
