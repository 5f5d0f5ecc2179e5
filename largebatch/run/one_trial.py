"""Makes the model and tries the run on one rank; the other ranks make theirs as its word says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from largebatch.data import Augmentation
from largebatch.gradient.accumulation import give_copies
from largebatch.losses import LabelRule, Loss
from largebatch.losses.cross_entropy import NextToken
from largebatch.losses.metrics import Metric
from largebatch.losses.module_loss import ModuleLoss
from largebatch.losses.module_units import Units
from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.run.checks.dry_run import KeptState, Tried, UntriedRun, dry_run, sampled_content
from largebatch.run.checks.machine import checkpoint_problems
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.data_sets import DataSets
from largebatch.run.derive import RunNumbers
from largebatch.run.following import scaled_groups
from largebatch.run.initial_state import build_optimizer, initial_model
from largebatch.run.precision.decisions import Decisions, decide
from largebatch.run.precision.device import Device
from largebatch.run.sent_weights import SENT_FROM_BYTES, NotHollowError, hollow_model, reason_against, weight_bytes
from largebatch.run.start_weights import StartWeights, load_start_weights
from largebatch.training.loop import Observer


@dataclass(frozen=True)
class Parts:
    """What every rank makes for itself: all but the model and its optimizer. None for what has failed.

    Attributes:
        given: the config as it was given.
        config: the same with what the device decides.
        kind: the device of this rank.
        own_observers: of the user, by name.
        metrics: by name.
        place_of_model: where errors of the model go in the list of all errors: behind those of data and loss.
    """

    given: TrainConfig
    config: TrainConfig
    kind: Device
    sets: DataSets
    loss: Loss | None
    augment: Augmentation | None
    numbers: RunNumbers | None
    place_of_model: int
    own_observers: dict[str, Observer]
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Own:
    """Model and optimizer of this rank, and what the dry run has shown."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    decisions: Decisions
    tried: Tried
    scaled_groups: ScaledGroups | None = None


@dataclass(frozen=True)
class Word:
    """What one rank has found out for all of them, to be pickled.

    Attributes:
        errors: reasons that the run cannot start; then nothing else counts.
        notes: facts to print before it starts.
        state: of `Tried`.
        labels: of `Tried`.
        shift: of the loss, where the samples or the model decide it.
        units: of the mean of the user's own loss, which the trial has determined.
        is_hollow: whether the other ranks need not draw the initial weights: they get them.
        start_weights: that were loaded in place of drawn ones, and are sent.
    """

    errors: tuple[str, ...]
    notes: tuple[str, ...]
    state: KeptState | None = None
    labels: LabelRule | None = None
    shift: bool | None = None
    units: Units | None = None
    is_hollow: bool = False
    start_weights: StartWeights | None = None

    @property
    def sends_weights(self) -> bool:
        """Whether this rank sends the initial weights to the others."""
        return self.is_hollow or self.start_weights is not None


def try_parts(
    parts: Parts, findings: Findings, *, trains: bool, device: torch.device | None, sends: bool
) -> tuple[Word, Own | None]:
    """Make the model on the CPU, move it to its device and try everything together.

    Args:
        parts: of the run.
        findings: errors and notes so far; gets those of the trial.
        trains: whether steps may follow.
        device: of the model; None: the CPU.
        sends: whether the weights of a large model are to be sent to other ranks.
    """
    config, sets, loss, numbers, making = parts.config, parts.sets, parts.loss, parts.numbers, Findings()
    model = making.attempt("model", lambda: initial_model(config, config.seed, sets.train))
    start = None if model is None else making.attempt("model", lambda: load_start_weights(config, model))
    if model is not None and device is not None:
        model.to(device)
    optimizer = None if model is None else making.attempt("optimizer", lambda: build_optimizer(config, model))
    findings.errors[parts.place_of_model : parts.place_of_model] = making.errors
    if model is not None and optimizer is not None:
        findings.errors += findings.attempt("model", lambda: checkpoint_problems(config, model, optimizer)) or []
    scaled = None
    if optimizer is not None and numbers is not None:
        scaled = findings.attempt("scaling", lambda: _scaled_groups(parts, optimizer))
    decisions, tried = decide(parts.kind, parts.given, model, numbers), None
    if not (numbers is None or model is None or loss is None or optimizer is None or findings.errors):
        _place(loss, device)
        run = UntriedRun(
            config,
            numbers,
            sets.train,
            sets.train_plain,
            sets.validation,
            parts.augment,
            model,
            loss,
            optimizer,
            trains,
            parts.metrics,
        )
        with decisions.switches().set():
            tried = dry_run(run, findings)
    if tried is None or findings.errors:
        return Word(tuple(findings.errors), tuple(findings.notes)), None
    assert model is not None
    assert optimizer is not None
    is_hollow, shift = sends and _can_be_sent(config, model, findings), getattr(tried.loss, "shift", None)
    units = own_loss.units if (own_loss := _module_loss(tried.loss)) else None
    word = Word((), tuple(findings.notes), tried.state, tried.labels, shift, units, is_hollow, start)
    return word, Own(model, optimizer, decisions, tried, scaled)


def untried(parts: Parts) -> tuple[Word, Own]:
    """Model and optimizer of a run that nobody has tried, whose tensors have shapes and no numbers.

    Raises:
        ValueError: if the model cannot be made without values.
    """
    config, loss = parts.config, parts.loss
    assert loss is not None
    note = "dry run: none, and no weights were made. Model, data and loss may not fit together."
    try:
        model = hollow_model(config, torch.device("cpu"), mode=FakeTensorMode(allow_non_fake_inputs=True))
    except NotHollowError as error:
        raise ValueError(f"{error} Leave out plan.dry_run=false.") from error
    optimizer = build_optimizer(config, model)
    tried = Tried(sampled_content(config, parts.sets.train), loss, None, KeptState())
    word = Word((), (note,), tried.state)
    decisions = decide(parts.kind, parts.given, model, parts.numbers)
    return word, Own(model, optimizer, decisions, tried, _scaled_groups(parts, optimizer))


def as_told(parts: Parts, word: Word, device: torch.device | None) -> Own:
    """Model and optimizer of a rank that has not tried the run.

    Raises:
        ValueError, OSError: if they, or the samples that stand for the training set, cannot be made here.
    """
    config, loss = parts.config, parts.loss
    assert loss is not None
    if word.is_hollow:
        model = hollow_model(config, torch.device("cpu") if device is None else device)
    else:
        model = initial_model(config, config.seed, parts.sets.train)
        if device is not None:
            model.to(device)
    optimizer = build_optimizer(config, model)
    assert word.state is not None
    if word.state.changes_inputs:
        give_copies(model)
    if isinstance(loss, NextToken) and loss.shift is None:
        loss = replace(loss, shift=word.shift)
    if own_loss := _module_loss(loss):
        own_loss.units = word.units
    _place(loss, device)
    tried = Tried(sampled_content(config, parts.sets.train), loss, word.labels, word.state)
    decisions = decide(parts.kind, parts.given, model, parts.numbers)
    return Own(model, optimizer, decisions, tried, _scaled_groups(parts, optimizer))


def _scaled_groups(parts: Parts, optimizer: torch.optim.Optimizer) -> ScaledGroups | None:
    numbers, as_batch = parts.numbers, parts.config.scaling.as_batch
    if numbers is None:
        return None
    return scaled_groups(numbers.following, optimizer, numbers.ramp, as_batch)


def _module_loss(loss: Loss) -> ModuleLoss | None:
    """A module or function of the user's, also below mixed labels."""
    one = getattr(loss, "of_one_label", loss)
    return one if isinstance(one, ModuleLoss) else None


def _place(loss: Loss, device: torch.device | None) -> None:
    if device is not None and isinstance(loss, nn.Module):
        loss.to(device)


def _can_be_sent(config: TrainConfig, model: nn.Module, findings: Findings) -> bool:
    """Whether the model is worth it, and whether other ranks can make it without its values."""
    num_bytes = weight_bytes(model)
    if num_bytes < SENT_FROM_BYTES:
        return False
    if reason := reason_against(config, model):
        findings.notes.append(
            f"model: every rank makes its {num_bytes / 2**30:.1f} GiB of weights by itself, in the memory of its host, "
            f"because {type(model).__name__} cannot be made on torch's meta device ({reason})."
        )
    return not reason
