"""Builds and tries everything that needs no process group, so that all ranks fail early, alike, with one report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from largebatch.batch.orders import require_pure_order
from largebatch.data import Augmentation, with_checked_labels
from largebatch.data.iterables import num_samples_of
from largebatch.distributed.launcher_environment import launcher_problems
from largebatch.distributed.process_group import own_device
from largebatch.distributed.word_of_rank0 import calling_off, word_of_rank0
from largebatch.gradient.choices import conflicts
from largebatch.losses import Loss
from largebatch.losses.coupled import is_coupled
from largebatch.losses.metrics import Metric, for_loss
from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.records.credentials import redacted
from largebatch.run.augmentation import augmentation, training_loss
from largebatch.run.averaging import average_settings
from largebatch.run.checks.dry_run import KeptState
from largebatch.run.checks.machine import folder_problems, machine_problems
from largebatch.run.checks.observers import observer_problems
from largebatch.run.config.combinations import choices_of, coupled_problems
from largebatch.run.config.findings import Findings
from largebatch.run.config.reading import ConfigError, parse_config, public_values, require_no_secrets
from largebatch.run.config.schema import TrainConfig
from largebatch.run.data_sets import data_sets
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.following import with_average
from largebatch.run.named_loss import named_loss, without_smoothing
from largebatch.run.named_metrics import named_metrics
from largebatch.run.one_trial import Own, Parts, Word, as_told, try_parts, untried
from largebatch.run.own_observers import own_observers
from largebatch.run.precision.decisions import Decisions
from largebatch.run.precision.device import Device
from largebatch.run.precision.number_format import settled
from largebatch.run.sample_order import sample_order
from largebatch.run.start_weights import StartWeights
from largebatch.run.token_counts import counted_in_samples
from largebatch.run.trunk import branch_problems
from largebatch.run.watched_keys import watched_problems
from largebatch.training.loop import Observer


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
        own_observers: of the user, by name.
        loss: of training samples, mixed ones if they are mixed; `measured_loss`: of plain ones, without smoothing.
        metrics: of evaluations, by name.
        gap_is_augmented: whether an evaluated set changes at random from read to read.
        sends_weights: whether only rank 0 has the initial weights until `open_runtime` sends them to the others.
        start_weights: that were loaded in place of drawn ones; None: none were.
        scaled_groups: what the groups of the optimizer get in each stage; None: nothing but the rate follows the batch.
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
    own_observers: dict[str, Observer] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    sends_weights: bool = False
    start_weights: StartWeights | None = None
    scaled_groups: ScaledGroups | None = None

    def place_losses(self, device: torch.device) -> None:
        """Move the buffers of losses that are modules, such as class weights."""
        for loss in (self.loss, self.measured_loss):
            if isinstance(loss, nn.Module):
                loss.to(device)


def prepare(
    composed: DictConfig,
    environ: Mapping[str, str],
    *,
    trains: bool = True,
    joins: bool = False,
    tries: bool = True,
) -> Prepared:
    """Check a composed config, build data, model, loss and optimizer, and try them together; see `dry_run`.

    Args:
        composed: config composed by Hydra.
        environ: of the process.
        trains: whether steps may follow; if not, optimizer and checkpoints are not tried.
        joins: whether this process is to join the job of `environ`. Then rank 0 alone tries the run, on its own device,
            and all ranks go by what it finds; all of them call this. Otherwise it is tried on the CPU.
        tries: whether the run is tried; if not, its model has shapes and no numbers, so no steps may follow.

    Raises:
        ConfigError: with all errors, on every rank.
        LauncherError: if rank 0 cannot be reached, or ends without a word.
    """
    require_no_secrets(composed)  # alone: other messages repeat values
    given, findings = parse_config(composed), Findings()
    parts = _parts(given, environ, findings)
    config = parts.config
    own: list[Own | None] = []
    joins = joins and not _launcher_problems(config, environ)  # which are reported
    device = _own_device(environ) if joins else None

    def find_out(*, sends: bool) -> Word:
        if tries:
            word, found = try_parts(parts, findings, trains=trains, device=device, sends=sends)
        else:
            findings.raise_if_any()
            word, found = findings.attempt("model", lambda: untried(parts)) or (Word(tuple(findings.errors), ()), None)
        own.append(found)
        return word

    word = None
    if joins:
        limit_s = config.launcher.rendezvous_timeout_s
        told = partial(find_out, sends=True)
        word = word_of_rank0(environ, told, is_final=lambda one: bool(one.errors), timeout_s=limit_s)
    word = find_out(sends=False) if word is None else word
    if word.errors:
        raise ConfigError(list(word.errors), list(word.notes))
    with calling_off(environ, redacted):
        findings.raise_if_any()
        mine = own[0] if own else findings.attempt("model", partial(as_told, parts, word, device))
        findings.raise_if_any()
        assert mine is not None
        return _prepared(composed, parts, mine, word)


def _prepared(composed: DictConfig, parts: Parts, own: Own, word: Word) -> Prepared:
    made, tried = parts.sets, own.tried
    assert parts.numbers is not None
    sets = {id(one): with_checked_labels(one, tried.labels) for one in (made.train, made.train_plain, made.validation)}
    measured_loss = without_smoothing(tried.loss)
    return Prepared(
        config=parts.config,
        decisions=own.decisions,
        public=public_values(composed),
        numbers=parts.numbers,
        train=sets[id(made.train)],
        train_plain=sets[id(made.train_plain)],
        validation=sets[id(made.validation)],
        augment=parts.augment,
        model=own.model,
        loss=training_loss(parts.config, tried.loss),
        measured_loss=measured_loss,
        optimizer=own.optimizer,
        content=tried.content,
        state=tried.state,
        notes=tuple(map(redacted, word.notes)),
        gap_is_augmented=made.gap_is_augmented,
        own_observers=parts.own_observers,
        metrics={name: for_loss(one, measured_loss) for name, one in parts.metrics.items()},
        sends_weights=word.sends_weights,
        start_weights=word.start_weights,
        scaled_groups=own.scaled_groups,
    )


def _own_device(environ: Mapping[str, str]) -> torch.device:
    device = own_device(environ)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _parts(given: TrainConfig, environ: Mapping[str, str], findings: Findings) -> Parts:
    """Everything but the model and the optimizer, with the checks that need neither."""
    kind = Device.own()
    config = settled(given, kind)
    _look_around(config, environ, kind, findings)
    made = data_sets(config, findings)
    counted, tokens = counted_in_samples(given, made.train, findings)
    given, config = (given, config) if counted is None else (counted, settled(counted, kind))
    loss = findings.attempt("loss", lambda: named_loss(config))
    place_of_model = len(findings.errors)
    augment = findings.attempt("data.augment", lambda: augmentation(config))
    if loss is not None:
        findings.attempt("loss", lambda: training_loss(config, loss))
    findings.errors += conflicts(choices_of(config, loss))
    numbers = None if counted is None else _numbers(config, environ, made.train, findings)
    if numbers is not None:
        numbers = replace(numbers, tokens_per_sample=tokens)
        average = findings.attempt("ema", partial(average_settings, config, numbers))
        scaled = with_average(numbers.scaled, average, config, numbers.ramp)
        numbers = replace(numbers, average=average, scaled=scaled)
    ramp = None if numbers is None else numbers.ramp
    if is_coupled(loss) and not findings.errors:
        findings.errors += coupled_problems(config, ramp, made.train_plain, made.validation)
    findings.errors += observer_problems(config, made.train_plain)
    if made.train is not None and numbers is not None:
        findings.attempt("data.order", lambda: _try_order(config, made.train, numbers))
    own, metrics = own_observers(config, findings), named_metrics(config, findings)
    findings.errors += watched_problems(config, metrics)
    return Parts(given, config, kind, made, loss, augment, numbers, place_of_model, own, metrics)


def _try_order(config: TrainConfig, train: Any, numbers: RunNumbers) -> None:
    require_pure_order(sample_order(config, train), batch_size=numbers.plan.global_batch_size)


def _numbers(config: TrainConfig, environ: Mapping[str, str], train: Any, findings: Findings) -> RunNumbers | None:
    if train is None or any("WORLD_SIZE" in error for error in findings.errors):
        return None
    world_size = int(environ.get("WORLD_SIZE", "1"))
    return findings.attempt("batch", lambda: derive(config, num_samples=num_samples_of(train), world_size=world_size))


def _look_around(config: TrainConfig, environ: Mapping[str, str], device: Device, findings: Findings) -> None:
    """Check launcher, machine and run folder."""
    findings.errors += _launcher_problems(config, environ)
    findings.errors += machine_problems(config, environ, device)
    findings.errors += findings.attempt("run folder", lambda: folder_problems(config)) or []
    findings.errors += branch_problems(config)


def _launcher_problems(config: TrainConfig, environ: Mapping[str, str]) -> list[str]:
    precision, num_processes = config.precision.compute, config.launcher.num_processes
    return launcher_problems(environ, precision=precision, num_processes=num_processes)
