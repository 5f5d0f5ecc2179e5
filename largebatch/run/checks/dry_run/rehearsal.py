"""The dry run: all its rehearsals, in order.

A rehearsal raises ValueError with fact, rule and remedy, or adds notes for the user to the findings. `as_before`
restores model, generators and gradients bit for bit. A model that writes to its inputs gets copies from then on.

Not tried: the memory of a full micro-batch, speed, fp16 (bf16 is tried in its place), the network, and micro-batches
of sizes between the smallest and the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from largebatch.data import Augmentation, MicroBatchData, with_checked_labels
from largebatch.gradient.accumulation import give_copies
from largebatch.losses import LabelRule, Loss
from largebatch.losses.metrics import Metric
from largebatch.run.augmentation import training_loss
from largebatch.run.checks.dry_run.content import content_of, probed_samples
from largebatch.run.checks.dry_run.documents import require_separation
from largebatch.run.checks.dry_run.evaluation import try_evaluation
from largebatch.run.checks.dry_run.labels import logits_in_pieces, rule_of, settled_loss
from largebatch.run.checks.dry_run.saving import try_saving
from largebatch.run.checks.dry_run.state import KeptState
from largebatch.run.checks.dry_run.topology import try_state
from largebatch.run.checks.dry_run.training import try_training
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers


@dataclass(frozen=True)
class UntriedRun:
    """The parts of a run before the dry run; see `prepare`."""

    config: TrainConfig
    numbers: RunNumbers
    train: Any
    train_plain: Any
    validation: Any
    augment: Augmentation | None
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    trains: bool
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class Tried:
    """Result of a dry run.

    Attributes:
        content: hash of the training set, see `sampled_content`.
        loss: the loss of the run, with the shift of token labels decided.
        labels: the labels that it can score.
        state: state that forward passes of the model change, and parameters that they skip.
    """

    content: str
    loss: Loss
    labels: LabelRule | None
    state: KeptState


def dry_run(run: UntriedRun, findings: Findings) -> Tried | None:
    """Try everything; None after the first failure.

    Args:
        run: the run.
        findings: gets the error and the notes.
    """
    config, model, loss = run.config, run.model, run.loss
    findings.notes += _narrow_weights(model)
    if config.data.skips:
        run = _skipping_labels(run)
    states: list[KeptState] = []

    def training() -> None:
        mixed = training_loss(config, loss)
        states.append(try_training(config, run.numbers, run.train, run.augment, model, mixed))
        if states[0].changes_inputs:
            give_copies(model)
            findings.notes.append(f"model: {type(model).__name__} writes to its inputs: it gets copies of them.")

    def evaluation(dataset: Any, count: int) -> None:
        world_size = run.numbers.ramp.plans[0].world_size
        try_evaluation(config, dataset, model, loss, run.metrics, count=count, world_size=world_size)

    rehearsals: dict[str, Callable[[], Any]] = {
        "model and data": training,
        "state": lambda: try_state(config, run.numbers, run.train, loss, states[0], findings),
        "model and data.train_plain": lambda: evaluation(
            run.train_plain, min(len(run.train_plain), len(run.validation))
        ),
        "model and data.validation": lambda: evaluation(run.validation, len(run.validation)),
        "checkpoint": partial(try_saving, config, model, run.optimizer),
        "data.train": partial(probed_samples, config, run.train),
    }
    if not run.trains:
        del rehearsals["checkpoint"], rehearsals["state"]
    probed: MicroBatchData | None = findings.attempt_in_turn(rehearsals)
    if probed is None:
        return None
    settled = findings.attempt("loss", lambda: settled_loss(model, loss, probed, config.precision.compute))
    if settled is None:
        return None
    findings.attempt("model", lambda: require_separation(model, run.train, probed, config.precision.compute))
    findings.notes += logits_in_pieces(*settled, probed.targets, run.numbers.ramp.max_micro_batch_size)
    return Tried(content_of(probed), *settled, states[0])


def _narrow_weights(model: nn.Module) -> list[str]:
    """A note if weights were loaded in half precision: they stay in it, whatever the precision of the run."""
    weights = list(model.parameters())
    narrow = [str(one.dtype).removeprefix("torch.") for one in weights if one.dtype in (torch.bfloat16, torch.float16)]
    if not narrow:
        return []
    kinds = ", ".join(sorted(set(narrow)))
    return [
        f"model: {len(narrow)} of {len(weights)} parameters were created in {kinds} and stay in it: updates below "
        "their last digit are lost. For float32 weights with bfloat16 compute, create the model in float32 and set "
        "precision=bf16."
    ]


def _skipping_labels(run: UntriedRun) -> UntriedRun:
    """The run on sets without labels that cannot be scored: with on_bad_sample=skip they must not stop the dry run."""
    try:
        rule = rule_of(run.model, run.loss, probed_samples(run.config, run.train), run.config.precision.compute)
    except Exception:  # the rehearsals report it
        return run
    plain = with_checked_labels(run.train_plain, rule)
    train = plain if run.train is run.train_plain else with_checked_labels(run.train, rule)
    return replace(run, train=train, train_plain=plain, validation=with_checked_labels(run.validation, rule))
