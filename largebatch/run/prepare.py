"""Builds and tries everything that needs no process group, so that all ranks fail early, alike, with one report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from largebatch.data import Augmentation, with_checked_labels
from largebatch.distributed.launcher_environment import launcher_problems
from largebatch.gradient.choices import conflicts
from largebatch.losses import Loss
from largebatch.losses.coupled import is_coupled
from largebatch.records.credentials import redacted
from largebatch.run.checks.dry_run import KeptState, Tried, UntriedRun, dry_run
from largebatch.run.checks.machine import checkpoint_problems, folder_problems, machine_problems
from largebatch.run.checks.observers import observer_problems
from largebatch.run.config.combinations import choices_of, coupled_problems
from largebatch.run.config.findings import Findings
from largebatch.run.config.reading import parse_config, public_values, require_no_secrets
from largebatch.run.config.schema import TrainConfig
from largebatch.run.data_sets import data_sets
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.initial_state import build_optimizer, initial_model
from largebatch.run.named_loss import named_loss, without_smoothing
from largebatch.run.precision.decisions import Decisions, decide
from largebatch.run.precision.device import Device
from largebatch.run.precision.number_format import settled


@dataclass(frozen=True)
class Prepared:
    """A run that has passed its dry run: the parts that `build` needs to start it.

    Attributes:
        config: of the run, with a number format in place of `auto`.
        decisions: how the run computes, where the config leaves it open.
        public: the config for records, as it was given.
        content: hash of the training set, see `sampled_content`.
        state: state that forward passes change, and parameters that they skip.
        notes: facts to print before the run starts, one line each; also in plan.json.
        gap_is_augmented: whether an evaluated set changes at random from read to read.
    """

    config: TrainConfig
    decisions: Decisions
    public: dict[str, Any]
    numbers: RunNumbers
    train: Any
    train_plain: Any
    validation: Any
    augment: Augmentation | None
    model: nn.Module
    loss: Loss
    measured_loss: Loss
    optimizer: torch.optim.Optimizer
    content: str
    state: KeptState
    notes: tuple[str, ...]
    gap_is_augmented: bool

    def place_losses(self, device: torch.device) -> None:
        """Move the buffers of losses that are modules, such as class weights."""
        for loss in (self.loss, self.measured_loss):
            if isinstance(loss, nn.Module):
                loss.to(device)


def prepare(composed: DictConfig, environ: Mapping[str, str], *, trains: bool = True) -> Prepared:
    """Check a composed config, build data, model, loss and optimizer, and try them together; see `dry_run`.

    Args:
        composed: config composed by Hydra.
        environ: of the process.
        trains: whether steps may follow; if not, optimizer and checkpoints are not tried.

    Raises:
        ConfigError: with all errors.
    """
    require_no_secrets(composed)  # alone: other messages repeat values
    given, device, findings = parse_config(composed), Device.own(), Findings()
    config = settled(given, device)
    _look_around(config, environ, device, findings)
    made = data_sets(config, findings)
    train, train_plain, validation = made.train, made.train_plain, made.validation
    loss = findings.attempt("loss", lambda: named_loss(config))
    model = findings.attempt("model", lambda: initial_model(config, config.seed, train))
    optimizer = None if model is None else findings.attempt("optimizer", lambda: build_optimizer(config, model))
    augment = findings.attempt("data.augment", lambda: _augmentation(config))
    findings.errors += conflicts(choices_of(config, loss))
    numbers = _numbers(config, environ, train, findings)
    ramp = None if numbers is None else numbers.ramp
    if is_coupled(loss) and not findings.errors:
        findings.errors += coupled_problems(config, ramp, train_plain, validation)
    findings.errors += observer_problems(config, train_plain)
    if model is not None and optimizer is not None:
        findings.errors += findings.attempt("model", lambda: checkpoint_problems(config, model, optimizer)) or []
    decisions = decide(device, given, model, numbers)
    tried = None
    if not (numbers is None or model is None or loss is None or optimizer is None or findings.errors):
        run = UntriedRun(config, numbers, train, train_plain, validation, augment, model, loss, optimizer, trains)
        tried = _tried(run, decisions, findings)
    findings.raise_if_any()
    assert not (tried is None or numbers is None or model is None or optimizer is None)  # noqa: PT018
    sets = {id(one): with_checked_labels(one, tried.labels) for one in (train, train_plain, validation)}
    return Prepared(
        config=config,
        decisions=decisions,
        public=public_values(composed),
        numbers=numbers,
        train=sets[id(train)],
        train_plain=sets[id(train_plain)],
        validation=sets[id(validation)],
        augment=augment,
        model=model,
        loss=tried.loss,
        measured_loss=without_smoothing(tried.loss),
        optimizer=optimizer,
        content=tried.content,
        state=tried.state,
        notes=tuple(map(redacted, findings.notes)),
        gap_is_augmented=made.gap_is_augmented,
    )


def _tried(run: UntriedRun, decisions: Decisions, findings: Findings) -> Tried | None:
    with decisions.switches().set():
        return dry_run(run, findings)


def _numbers(config: TrainConfig, environ: Mapping[str, str], train: Any, findings: Findings) -> RunNumbers | None:
    if train is None or any("WORLD_SIZE" in error for error in findings.errors):
        return None
    world_size = int(environ.get("WORLD_SIZE", "1"))
    return findings.attempt("batch", lambda: derive(config, num_samples=len(train), world_size=world_size))


def _look_around(config: TrainConfig, environ: Mapping[str, str], device: Device, findings: Findings) -> None:
    """Check launcher, machine and run folder."""
    precision, num_processes = config.precision.compute, config.launcher.num_processes
    findings.errors += launcher_problems(environ, precision=precision, num_processes=num_processes)
    findings.errors += machine_problems(config, environ, device)
    findings.errors += findings.attempt("run folder", lambda: folder_problems(config)) or []


def _augmentation(config: TrainConfig) -> Augmentation | None:
    augment = config.data.augment
    if not (augment.crop_padding or augment.flip or augment.cutout):
        return None
    return Augmentation(config.seed, crop_padding=augment.crop_padding, flip=augment.flip, cutout=augment.cutout)
