"""Checks that a run can continue from a checkpoint: position, weights and optimizer state must fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.records.checkpoint import Checkpoint, CheckpointError, Fits, require_run_fit, require_run_values
from largebatch.run.derive import RunNumbers
from largebatch.run.growth import as_decided
from largebatch.run.prepare import Prepared
from largebatch.run.resume.identity import Change, changes_of


def fits_run(prepared: Prepared, identity: dict[str, Any]) -> Fits:
    """The check that this run can continue from a checkpoint, without the identity; see `check_identity`."""
    allow = prepared.config.resume_allow

    def fits(checkpoint: Checkpoint) -> None:
        require_run_values(checkpoint)
        changes = changes_of(checkpoint, identity)
        if not all(change.is_allowed_by(allow) for change in changes):
            return  # `check_identity` refuses another run with all differences
        is_same = all(change.is_only_told for change in changes)
        _require_position(checkpoint, _decided(prepared.numbers, checkpoint), is_same=is_same)
        scaled = prepared.scaled_groups
        keeps = changed_options(changes, scaled)
        require_run_fit(checkpoint, prepared.model, prepared.optimizer, keeps=keeps, scaled=scaled)

    return fits


def changed_options(changes: Sequence[Change], scaled: ScaledGroups | None = None) -> frozenset[str]:
    """Options of the optimizer that have other values than in the checkpoint; `scaled`: those that follow the batch."""
    keys = [change.key.split(".") for change in changes]
    named = frozenset(parts[1] for parts in keys if parts[0] == "optimizer" and len(parts) > 1)
    rules = {parts[1] for parts in keys if parts[0] == "scaling" and len(parts) > 1}
    follow = scaled.keys if rules and scaled is not None else frozenset()
    return named | follow | (rules & {"momentum", "betas", "eps", "weight_decay"})


def _decided(numbers: RunNumbers, checkpoint: Checkpoint) -> RunNumbers:
    try:
        return as_decided(numbers, checkpoint)
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.path}: its decisions about the batch are none of this run: {error}. Use an older checkpoint."
        ) from error


def _require_position(checkpoint: Checkpoint, numbers: RunNumbers, *, is_same: bool) -> None:
    """Check that step and samples match; a run of another length or schedule may have had another ramp."""
    step, samples = checkpoint.values["step"], checkpoint.values["samples_seen"]
    expected = numbers.ramp.samples_of_steps(step)
    is_possible = samples == expected or (not is_same and len(numbers.ramp.plans) > 1 and samples >= step)
    if not is_possible or (is_same and step > numbers.num_steps):
        raise CheckpointError(
            f"{checkpoint.path}: is of step {step} after {samples:,} samples, but {step} steps of this run, which has "
            f"{numbers.num_steps:,}, consume {expected:,}. Use an older checkpoint."
        )
