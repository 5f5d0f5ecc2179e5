"""`largebatch measure sharpness`: how sharp the minimum is that given weights lie in."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from largebatch.commands.composition import run_verb

if TYPE_CHECKING:
    from largebatch.measure_schema import MeasureConfig, SharpnessConfig
    from largebatch.measured_weights import Weights
    from largebatch.prepare import Prepared
    from largebatch.sharpness import FixedSubset, Sharpness

Rows = list[tuple[str, str, str, str]]


def main(arguments: Sequence[str]) -> int:
    """Compose, measure, show; returns the exit code."""
    return run_verb("measure sharpness", run, arguments, config_name="measure")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Measure the weights that `measure.checkpoint` names, on all ranks of the launcher together."""
    from largebatch.measured_weights import open_weights, parse_measure
    from largebatch.prepare import prepare
    from largebatch.sharpness import SharpnessSettings, measure_sharpness

    options = parse_measure(config)
    prepared = prepare(config, os.environ)
    subset = _subset(prepared, options)
    settings = SharpnessSettings(seed=prepared.config.seed, **options.sharpness.model_dump())
    with open_weights(prepared, options.checkpoint) as weights:
        found = measure_sharpness(weights.module, prepared.measured_loss, subset, weights.runtime, settings)
    if found is not None:
        _show(prepared, options, weights, found, num_samples=len(subset.ids))
    return 0


def _subset(prepared: Prepared, options: MeasureConfig) -> FixedSubset:
    from largebatch.config import ConfigError
    from largebatch.coupled_losses import is_coupled
    from largebatch.measured_weights import fixed_subset

    if is_coupled(prepared.loss):
        raise ConfigError(
            [f"loss._target_={prepared.config.loss['_target_']}: it compares the samples of a batch, so that the loss "
             "of a subset depends on how it is cut. Measure the sharpness of a loss that is a sum over samples."]
        )  # fmt: skip
    subset = fixed_subset(prepared, options)
    count, m = len(subset.ids), options.sharpness.m
    if count % m:
        whole = f"measure.samples={count - count % m}" if count >= m else f"m at most {count}"
        raise ConfigError(
            [f"measure.sharpness.m={m}: {count} samples do not divide into groups of {m}. Use {whole}, or another m."]
        )
    return subset


def _rows(found: Sharpness, options: SharpnessConfig) -> Rows:
    """(what, value, error, meaning) as shown."""
    top, box = found.lambda_max, found.box
    unconverged = "" if top.converged else "; not converged, raise measure.sharpness.lanczos_iterations"
    return [
        ("loss", f"{found.loss:.6g}", "", "mean over the subset, in eval mode"),
        ("|gradient|", f"{found.gradient_norm:.4g}", "", "of that mean; small near a minimum"),
        ("lambda_max", f"{top.value:.6g}", f"residual {top.residual:.1e}",
         f"largest Hessian eigenvalue (Lanczos, {top.num_products} products{unconverged}); "
         "plain gradient descent is stable up to lr 2/lambda_max (Cohen et al. 2021)"),
        ("trace", f"{found.trace.value:.6g}", f"+- {found.trace.standard_error:.2g}",
         f"sum of all eigenvalues (Hutchinson 1990, {found.trace.num_samples} vectors)"),
        ("box", f"{box.value:.6g}", "lower bound",
         f"100 (max loss - loss) / (1 + loss) for |y| <= {options.box_eps:g} (|w| + 1) "
         f"(Keskar et al. 2017, {box.num_evaluations} evaluations)"),
        (f"{options.m}-sharpness", f"{found.m_sharpness.value:.6g}", _error(found.m_sharpness.standard_error),
         f"mean rise of a loss of {options.m} samples along its own gradient over {options.rho:g} "
         f"(Foret et al. 2021, {found.m_sharpness.num_samples} groups)"),
    ]  # fmt: skip


def _error(standard_error: float) -> str:
    return "" if math.isnan(standard_error) else f"+- {standard_error:.2g}"


def _show(prepared: Prepared, options: MeasureConfig, weights: Weights, found: Sharpness, *, num_samples: int) -> None:
    from largebatch.run_folder import new_folder
    from largebatch.trackers import plot_slices, print_table

    config = prepared.config
    folder = Path(config.run.dir) if config.run.dir else new_folder(config.run.root, "sharpness")
    folder.mkdir(parents=True, exist_ok=True)
    title = f"sharpness of {weights.source}, on {num_samples} training samples in {options.precision}"
    print_table(("what", "value", "error", "meaning"), _rows(found, options.sharpness), title=title)
    name = config.run.name or config.data.name
    plots = plot_slices(found.slices, folder, title=f"{name}, {weights.source}", unit=prepared.loss.unit)
    (folder / "sharpness.json").write_text(json.dumps(_record(prepared, options, weights, found), indent=1) + "\n")
    for path in (folder / "sharpness.json", *plots):
        print(path)


def _record(prepared: Prepared, options: MeasureConfig, weights: Weights, found: Sharpness) -> dict[str, Any]:
    import dataclasses

    from largebatch.run_folder import environment

    values = dataclasses.asdict(found)
    for estimate in (values["trace"], values["m_sharpness"]):
        if math.isnan(estimate["standard_error"]):
            estimate["standard_error"] = None
    return {
        **values,
        "weights": weights.source,
        "checkpoint": weights.checkpoint,
        "step": weights.step,
        "world_size": weights.runtime.world_size,
        "unit": prepared.loss.unit,
        "settings": options.model_dump(),
        "config": prepared.public,
        "environment": environment(),
    }
