"""Is the mini-batch gradient unbiased? Its mean over many draws, and over one epoch, against the full gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from largebatch.batch.random_keys import stream_key
from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.training_set import training_set
from largebatch.gradient.snapshots import measuring
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError
from largebatch.training.loop import Observer, Run

Float64Array = npt.NDArray[np.float64]
_SIMULATED = 20_000  # draws of the distance that chance alone explains


class Settings(Section):
    """See conf/experiment/textbook/unbiasedness.yaml."""

    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    draws: Annotated[int, Field(ge=2)]


class SampleGradients(Observer):
    """Observer that computes the gradient of every sample at the weights that training ends with.

    Attributes:
        gradients: [samples, p], float64.
    """

    def __init__(self, subset: FixedSubset) -> None:
        self.gradients: Float64Array = np.empty((0, 0))
        self._subset = subset

    def on_end(self, run: Run, status: str) -> None:
        """One backward pass per sample."""
        loss = run.gradient.local.loss
        parameters = [parameter for parameter in run.module.parameters() if parameter.requires_grad]
        rows = []
        with measuring(run.module):
            for inputs, targets in self._subset.stream(run.runtime):
                value = loss.loss_per_sample(run.module(inputs), targets).sum()
                parts = torch.autograd.grad(value, parameters)
                rows.append(torch.cat([part.reshape(-1) for part in parts]).double().cpu().numpy())
        self.gradients = np.stack(rows)


@dataclass(frozen=True)
class Mean:
    """The mean of `draws` independent batch gradients against the full gradient G.

    Attributes:
        batch_size: B, drawn with replacement.
        distance: |mean of the first n - G|, for each n.
        expected: sqrt(tr(Sigma) / (B n)): its root mean square if the batch gradient is unbiased.
        ratio: squared distance after all draws, over its expectation.
        high: 97.5 % quantile of that ratio if unbiased; low: 2.5 %.
        weighted, plain: |mean over one epoch's batches - G| / |G|: batches weighted by their size, and all alike.
    """

    batch_size: int
    distance: Float64Array
    expected: Float64Array
    ratio: float
    low: float
    high: float
    weighted: float
    plain: float

    @property
    def is_unbiased(self) -> bool:
        """Whether chance explains the distance."""
        return self.low <= self.ratio <= self.high


def run(experiment: Experiment, settings: Settings) -> Result:
    """Train, take the gradient of each sample at the end, and draw batches of them."""
    dataset, seed = training_set(experiment), int(experiment.config.seed)
    if too_large := [size for size in settings.batch_sizes if size > len(dataset)]:
        raise ConfigError([f"textbook.batch_sizes: {too_large[0]} is more than the {len(dataset)} training samples."])
    observer = SampleGradients(FixedSubset.random(dataset, len(dataset), seed=seed, micro_batch_size=1))
    experiment.train("run", observers=[observer])
    found = [mean_of_draws(observer.gradients, size, settings.draws, seed=seed) for size in settings.batch_sizes]
    return Result(
        title="Is the mini-batch gradient unbiased?",
        question="Is the gradient of a mini-batch right on average?",
        sentences=_sentences(found, settings),
        tables=(_table(found, settings),),
        figures=(_diagram(found),),
        numbers={"num_samples": len(dataset), "batches": [_numbers(one) for one in found]},
    )


def mean_of_draws(gradients: Float64Array, batch_size: int, draws: int, *, seed: int) -> Mean:
    """The means of `draws` batches of `batch_size` samples, drawn with replacement from gradients [samples, p].

    If the batch gradient is unbiased, |mean - G|^2 B n / tr(Sigma) is near sum_i lambda_i chi^2_1 / sum_i lambda_i,
    with the eigenvalues lambda of Sigma (central limit theorem): mean 1, quantiles by simulation.
    """
    full = gradients.mean(axis=0)
    deviations = gradients - full
    count = len(gradients)
    rng = np.random.default_rng(stream_key(seed, "draws of batches", batch_size))
    # Only how often a sample is drawn matters: [draws, samples] counts, a product instead of B n rows.
    drawn = rng.multinomial(batch_size, np.full(count, 1 / count), size=draws)
    sums = np.cumsum(drawn @ deviations / batch_size, axis=0)
    numbers = np.arange(1, draws + 1)
    distance = np.linalg.norm(sums / numbers[:, None], axis=1)
    eigenvalues = np.linalg.svd(deviations, compute_uv=False) ** 2 / count
    trace = float(eigenvalues.sum())
    expected = np.sqrt(trace / (batch_size * numbers))
    simulated = rng.chisquare(1, (_SIMULATED, len(eigenvalues))) @ eigenvalues / trace
    low, high = np.quantile(simulated, [0.025, 0.975])
    ratio = float((distance[-1] / expected[-1]) ** 2)
    weighted, plain = _over_an_epoch(gradients[rng.permutation(count)], batch_size, full)
    return Mean(batch_size, distance, expected, ratio, float(low), float(high), weighted, plain)


def _over_an_epoch(shuffled: Float64Array, batch_size: int, full: Float64Array) -> tuple[float, float]:
    batches = np.split(shuffled, range(batch_size, len(shuffled), batch_size))
    means = np.stack([batch.mean(axis=0) for batch in batches])
    sizes = np.array([len(batch) for batch in batches])
    size = float(np.linalg.norm(full))
    weighted = np.linalg.norm(sizes @ means / len(shuffled) - full) / size
    return float(weighted), float(np.linalg.norm(means.mean(axis=0) - full) / size)


def _diagram(found: list[Mean]) -> Diagram:
    lines = []
    for one in found:
        draws = len(one.distance)
        shown = np.unique(np.geomspace(1, draws, 40).round().astype(int)) - 1
        numbers = (shown + 1).tolist()
        size, name, group = one.batch_size, f"batch {one.batch_size:,}", str(one.batch_size)
        lines.append(Line(name, numbers, one.distance[shown].tolist(), group=group, batch=size))
        theory = one.expected[shown].tolist()
        lines.append(Line(f"{name}, if unbiased", numbers, theory, style="dashed", group=group, batch=size))
    return Diagram(
        "distance_over_draws",
        "The mean of n batch gradients comes to the full gradient",
        Axis("n, batches drawn", log=True),
        Axis("|mean of n gradients - G|", log=True),
        tuple(lines),
        "Dashed: sqrt(tr(Sigma) / (B n)), the root mean square for an unbiased gradient. A bias would end the fall.",
    )


def _table(found: list[Mean], settings: Settings) -> Table:
    rows = [
        (
            f"{one.batch_size:,}", f"{one.ratio:.2f}", f"{one.low:.2f} to {one.high:.2f}",
            "yes" if one.is_unbiased else "no", f"{one.weighted:.1g}", f"{one.plain:.1g}",
        )
        for one in found
    ]  # fmt: skip
    headers = ("batch", "squared distance", "95 % if unbiased", "unbiased", "epoch, by size", "epoch, all alike")
    title = f"mean of {settings.draws:,} batch gradients against the full one; distance in units of its expectation"
    return Table(title, headers, rows)


def _sentences(found: list[Mean], settings: Settings) -> list[str]:
    right = [one.batch_size for one in found if one.is_unbiased]
    sizes = ", ".join(f"{one.batch_size:,}" for one in found)
    explained = f"chance explains how far the mean of {settings.draws:,} batch gradients is from the full gradient"
    sentences = [
        f"Yes: at batch {sizes} {explained}."
        if len(right) == len(found)
        else f"At {len(right)} of {len(found)} batch sizes {explained}; one of twenty falls outside by chance."
    ]
    worst = max(found, key=lambda one: one.weighted)
    sentences.append(
        f"Over one epoch, batches weighted by their size give the full gradient, to {worst.weighted:.0e} of its norm."
    )
    ragged = max(found, key=lambda one: one.plain)
    if ragged.plain > 100 * worst.weighted:
        sentences.append(
            f"A plain mean over batches does not: at batch {ragged.batch_size:,} the last batch of the epoch is "
            f"smaller, and counting it in full moves the mean by {ragged.plain:.2g} of the full gradient's norm."
        )
    return sentences


def _numbers(one: Mean) -> dict[str, Any]:
    return {
        "batch_size": one.batch_size,
        "ratio": one.ratio,
        "low": one.low,
        "high": one.high,
        "unbiased": one.is_unbiased,
        "epoch_weighted_by_size": one.weighted,
        "epoch_all_alike": one.plain,
    }
