"""All rehearsals of a run, in turn.

Each is a function that raises ValueError with a fact, a rule and a remedy, or adds to the notes of the findings what is
to be known before the first step. Model, generators and gradients are afterwards as they were, bit for bit: see
`as_before`. A model that writes to its inputs gets copies from then on.

Not tried: memory and speed of the device, its kernels, fp16 (bf16 stands for it on a CPU), the network, and
micro-batches of sizes between the smallest and the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from largebatch.data import Augmentation, MicroBatchData, with_checked_labels
from largebatch.gradient.accumulation import give_copies
from largebatch.losses import LabelRule, Loss
from largebatch.run.checks.dry_run.content import content_of, probed_samples
from largebatch.run.checks.dry_run.evaluation import try_evaluation
from largebatch.run.checks.dry_run.labels import rule_of, settled_loss
from largebatch.run.checks.dry_run.saving import try_saving
from largebatch.run.checks.dry_run.state import KeptState
from largebatch.run.checks.dry_run.topology import try_state
from largebatch.run.checks.dry_run.training import try_training
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers


@dataclass(frozen=True)
class UntriedRun:
    """What there is of a run before it starts; see `prepare`."""

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


@dataclass(frozen=True)
class Tried:
    """What a dry run settles.

    Attributes:
        content: stands for the training set, see `sampled_content`.
        loss: as the run takes it: whether labels of tokens are shifted was asked.
        labels: that it can score.
        state: what forward passes of the model keep and leave out.
    """

    content: str
    loss: Loss
    labels: LabelRule | None
    state: KeptState


def dry_run(run: UntriedRun, findings: Findings) -> Tried | None:
    """Try everything until something fails; then None.

    Args:
        run: to be tried.
        findings: gets the error, and notes.
    """
    config, model, loss = run.config, run.model, run.loss
    findings.notes += _narrow_weights(model)
    if config.data.skips:
        run = _skipping_labels(run)
    states: list[KeptState] = []

    def training() -> None:
        states.append(try_training(config, run.numbers, run.train, run.augment, model, loss))
        if states[0].changes_inputs:
            give_copies(model)
            findings.notes.append(f"model: {type(model).__name__} writes to its inputs: it gets copies of them.")

    def evaluation(dataset: Any, count: int) -> None:
        try_evaluation(config, dataset, model, loss, count=count, world_size=run.numbers.ramp.plans[0].world_size)

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
    return None if settled is None else Tried(content_of(probed), *settled, states[0])


def _narrow_weights(model: nn.Module) -> list[str]:
    """What a model that was loaded in half precision does: it stays in it, whatever the precision of the run."""
    weights = list(model.parameters())
    narrow = [str(one.dtype).removeprefix("torch.") for one in weights if one.dtype in (torch.bfloat16, torch.float16)]
    if not narrow:
        return []
    kinds = ", ".join(sorted(set(narrow)))
    return [
        f"model: {len(narrow)} of {len(weights)} parameters are {kinds}, as the model was made: they stay so, and "
        "updates below their last digit are lost. For float32 weights that compute in bfloat16 make the model in "
        "float32 and set precision=bf16."
    ]


def _skipping_labels(run: UntriedRun) -> UntriedRun:
    """The run on sets that hold back labels which cannot be scored: where samples are skipped they stop no dry run."""
    try:
        rule = rule_of(run.model, run.loss, probed_samples(run.config, run.train), run.config.precision.compute)
    except Exception:  # the rehearsals tell it
        return run
    plain = with_checked_labels(run.train_plain, rule)
    train = plain if run.train is run.train_plain else with_checked_labels(run.train, rule)
    return replace(run, train=train, train_plain=plain, validation=with_checked_labels(run.validation, rule))
