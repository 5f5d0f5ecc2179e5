"""Shared by all measurements: weights, the launcher's job, a fixed subset of the data, and refusals."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.distributed.runtime import Runtime
from largebatch.records.checkpoint import Checkpoint, CheckpointError, load_weights, require_model_fit, why_absent
from largebatch.records.result import Result
from largebatch.records.run_folder import RunFolder
from largebatch.run.config.measure import MeasureConfig
from largebatch.run.config.reading import ConfigError, parse_section
from largebatch.run.parts import open_runtime
from largebatch.run.prepare import Prepared
from largebatch.run.resume import find_checkpoint


@dataclass(frozen=True)
class Weights:
    """A module on its device, never wrapped, and where its weights come from.

    Attributes:
        source: their origin, for titles and messages.
        checkpoint: its path; None for the initial weights.
        step: optimizer steps that the weights have seen.
    """

    module: nn.Module
    runtime: Runtime
    source: str
    checkpoint: str | None
    step: int


# Measures on all ranks together; None on every rank but 0. Made before any process group, where wrong input is refused.
Measurement = Callable[[Weights], Result | None]


class NotMeasurableError(ConfigError):
    """The quantity does not exist for this loss or number of processes; `measure all` reports that and goes on."""


def parse_measure(config: DictConfig, *, keeps_format_for: str | None = None) -> MeasureConfig:
    """Take the section `measure` out of a composed config, and set the precision that it asks for.

    Args:
        config: composed; changed.
        keeps_format_for: the measurement whose steps stay in the run's own precision; None: another one is measured.

    Raises:
        ConfigError: with all that is wrong in it.
    """
    options = parse_section(config, "measure", MeasureConfig)
    if keeps_format_for is None:
        options = options.model_copy(update={"precision": options.precision or "fp32"})
        OmegaConf.update(config, "precision.compute", options.precision)
        OmegaConf.update(config, "precision.tf32", False)
    elif options.precision is not None:
        raise ConfigError(
            [
                f"measure.precision={options.precision}: has no effect on `measure {keeps_format_for}`, whose steps "
                f"are in the run's own format. Leave it null, or set precision={options.precision} for such a run."
            ]
        )
    return options


@contextlib.contextmanager
def open_weights(prepared: Prepared, checkpoint: str | None, *, key: str = "measure.checkpoint") -> Iterator[Weights]:
    """Join the job of the launcher, load the weights of a run or a checkpoint (None: the initial ones), leave the job.

    Errors name `checkpoint` by `key`.

    Raises:
        LauncherError: if ranks do not join, launcher and accelerate disagree, or the ranks are not the same run.
        CheckpointError: if there is no valid checkpoint, or it belongs to another model.
    """
    config = prepared.config
    # Rank 0 alone reads checkpoints: another machine need not have them.
    if checkpoint is not None and os.environ.get("RANK", "0") == "0" and (absent := why_absent(Path(checkpoint))):
        raise CheckpointError(f"{key}={absent}")
    with open_runtime(prepared) as runtime:
        prepared.place_losses(runtime.device)
        module = prepared.model.double() if config.precision.compute == "fp64" else prepared.model
        module.to(runtime.device)
        source, path, step = "the initial weights", None, 0
        if checkpoint is not None:
            fits = partial(require_model_fit, module=module, any_precision=True)
            where = str(Path(checkpoint).absolute())  # a path, even if it is called "auto"
            found, _ = find_checkpoint(where, RunFolder(Path(where)), runtime, key=key, fits=fits)
            assert found is not None
            _load(runtime, module, found, key)
            source, path, step = f"{brief_path(found.path)} (step {found.step})", str(found.path), found.step
        yield Weights(module, runtime, source, path, step)


def brief_path(path: Path) -> str:
    """A path for titles of pictures, which are shared: relative to here, or from the run's folder on."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    owners = [number for number, part in enumerate(path.parts) if part == "checkpoints"]
    return str(Path(*path.parts[max(owners[-1] - 1, 0) if owners else -1 :]))


def _load(runtime: Runtime, module: nn.Module, checkpoint: Checkpoint, key: str) -> None:
    try:
        missing, unexpected = load_weights(runtime, module, checkpoint.tensors["model"])
        if missing or unexpected:
            raise ValueError(f"{len(missing)} tensors of the model are missing, {len(unexpected)} are left over")
    except Exception as error:  # of a hook of the model's own; all else was found to fit
        differences = " ".join(str(error).split())
        raise CheckpointError(
            f"{key}={checkpoint.path} belongs to another model: {differences}. Give the model and the "
            "data of its run; they are in its config.yaml."
        ) from None


def fixed_subset(prepared: Prepared, options: MeasureConfig) -> FixedSubset:
    """The first `measure.samples` of the random subset of the training set that evaluation uses, not augmented.

    Raises:
        ConfigError: if the training set has fewer.
    """
    dataset, config = prepared.train_plain, prepared.config
    count = len(dataset) if options.samples is None else options.samples
    if count > len(dataset):
        raise ConfigError(
            [f"measure.samples={count}: the training set has {len(dataset)}. Use {len(dataset)} or fewer, or null for "
             "all of it."]
        )  # fmt: skip
    return FixedSubset.random(
        dataset, count, seed=config.seed, micro_batch_size=options.micro, num_workers=config.data.num_workers
    )
