"""The distance between the ends of k steps and of one step at k times the batch and rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.experiments.textbook.bands import Band, band_of_mean
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.weight_path import Float64Array, WeightPath
from largebatch.records.figures.diagram import Axis, Diagram, Line


@dataclass(frozen=True)
class Detour:
    """How far one step of k eta ends from k steps of eta, from the same weights on the same samples.

    Attributes:
        after_steps: at the base batch, before the one step or the k.
        factors: k above 1.
        distances: [seeds, k]: |difference of the weights| / |way of the k steps|.
    """

    after_steps: int
    factors: Sequence[int]
    distances: Float64Array

    @property
    def band(self) -> Band:
        """Over seeds, for every k."""
        return band_of_mean(self.distances, of_logarithms=True)

    @property
    def slope(self) -> float:
        """The slope of log distance over log(k - 1): 1 if the gradient changes evenly along the way."""
        return float(np.polyfit(np.log(np.array(self.factors) - 1), np.log(self.band.mean), 1)[0])


def measure_detour(experiment: Experiment, factors: Sequence[int], *, after_steps: int, num_seeds: int) -> Detour:
    """One run of single steps has every k's end on its way; the one large step is a run of its own per k."""
    base = experiment.config.scaling.base_batch_size
    distances = np.empty((num_seeds, len(factors)))
    for seed in range(num_seeds):
        common = (f"seed={experiment.config.seed + seed}", "scaling.rule=linear", "observers.evaluation.every=null",
                  "observers.sharpness.every=null", f"batch.total={base}")  # fmt: skip
        single = WeightPath()
        length = f"length={base * (after_steps + factors[-1])}samples"
        experiment.train(f"steps-after{after_steps}-{seed}", *common, length, observers=[single])
        for place, k in enumerate(factors):
            large = WeightPath()
            changes = [f"batch.total={k * base}"]
            if after_steps:
                changes = [f"batch.ramp.milestones=[{after_steps * base}samples]", f"batch.ramp.totals=[{k * base}]"]
            length = f"length={base * (after_steps + k)}samples"
            experiment.train(f"step-k{k}-after{after_steps}-{seed}", *common, *changes, length, observers=[large])
            start, end = single.weights[after_steps], single.weights[after_steps + k]
            distances[seed, place] = np.linalg.norm(large.weights[-1] - end) / np.linalg.norm(end - start)
    return Detour(after_steps, factors, distances)


def detour_figure(detours: Sequence[Detour]) -> Diagram:
    """Distances over k, beside their first one growing as k - 1."""
    lines = []
    for detour in detours:
        factors = detour.factors
        lines.append(Line(f"after {detour.after_steps} steps", factors, *detour.band, style="both"))
    first = detours[0]
    proportional = first.band.mean[0] * (np.array(first.factors) - 1) / (first.factors[0] - 1)
    lines.append(Line("proportional to k - 1", first.factors, proportional.tolist(), style="dashed"))
    return Diagram(
        "one_step_against_k", "One step of k eta against k steps of eta", Axis("k", log=True),
        Axis("distance of the ends / way of the k steps", log=True), tuple(lines),
        "From the same weights, on the same samples in the same order. Bands: 95 % of the geometric mean over seeds.",
    )  # fmt: skip


def detour_sentence(detour: Detour) -> str:
    """The miss of one large step, as a sentence."""
    first, *_, last = detour.band.mean
    return (
        f"After {detour.after_steps} steps, one step of k eta misses the end of k steps by {first:.1%} of their way at "
        f"k = {detour.factors[0]} and by {last:.0%} at k = {detour.factors[-1]}. The miss grows like (k - 1) to the "
        f"power {detour.slope:.2f}; an evenly changing gradient has 1."
    )
