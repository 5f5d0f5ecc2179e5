"""Decides whether a run with state is the same on any number of ranks: refuses state without a rule, notes the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largebatch.data import changing_samples
from largebatch.gradient.choices import Ability
from largebatch.losses import Loss
from largebatch.run.checks.dry_run.state import KeptState
from largebatch.run.config.combinations import refusals
from largebatch.run.config.findings import Findings
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers

MOVING_TENSORS = "weights or buffers that a pass moves with its samples"
_NOT_MOVED = "one micro-batch per step on one process, eval() for these modules"
_OWN_DRAWS = (
    "Draw from the global generators of torch, numpy or random: they are keyed by sample (data) and by micro-batch "
    "(model), never by rank."
)


def try_state(
    config: TrainConfig, numbers: RunNumbers, dataset: Any, loss: Loss, state: KeptState, findings: Findings
) -> None:
    """Refuse state that ranks would not share; note the rule of all other state.

    Raises:
        ConfigError: with all refused state.
    """
    plans = numbers.ramp.plans
    world_size, most = plans[0].world_size, max(len(plan.micro_batch_sizes) for plan in plans)
    problems = state_problems(state) | data_problems(dataset, config.seed)
    if problems and world_size > 1:
        raise ConfigError([f"{world_size} ranks: {problem}" for problem in problems.values()])
    # One process is plain torch, and its checkpoints hold buffers. A note is due if they change several times a step.
    findings.notes += [f"state: {text}" for name, text in problems.items() if name != MOVING_TENSORS or most > 1]
    if most > 1 and state.by_step:
        moved = f"a pass that changes {_names(state.by_step)} of the model"
        if refused := refusals(moved, Ability.ONE_BY_ONE, config, loss, instead=_NOT_MOVED):
            raise ConfigError(refused)
        findings.notes.append(
            f"state: {_names(state.by_step)} of the model change identically in every pass, so they change once per "
            f"step, as with one big batch: each of its {most} micro-batches starts from their values at the start of "
            "the step."
        )
    if world_size > 1 and state.choices:
        findings.notes.append(
            f"state: the model's control flow may depend on values ({', '.join(state.choices)}), so it may skip "
            "parameters. A parameter that no micro-batch of a step uses keeps its weight and its optimizer state, as "
            "in plain torch; the ranks agree on it in every step."
        )


def state_problems(state: KeptState) -> dict[str, str]:
    """State of a model without a rule that is independent of the ranks: name -> fact, rule and remedy."""
    problems = {}
    if state.by_samples:
        problems[MOVING_TENSORS] = (
            f"{_names(state.by_samples)} of the model change with the samples of each pass: a rank would see only its "
            "own micro-batches, and no average over ranks equals the result of one process. Train on one process, put "
            "these modules into eval(), or compute these tensors from the weights."
        )
    if state.is_hidden:
        problems["state outside of buffers"] = (
            "the model or the loss gave other values the second time, for the same samples, draws and buffers: it has "
            "a generator, counter or cache of its own, which ranks do not share and a checkpoint does not hold. "
            + _OWN_DRAWS
        )
    return problems


def data_problems(dataset: Any, seed: int) -> dict[str, str]:
    """State of a data set: a sample that depends on earlier reads. Name -> fact, rule and remedy."""
    changing = [] if hasattr(dataset, "fetch") else changing_samples(dataset, seed=seed, epochs=(0, 0))
    if not changing:
        return {}
    text = (
        f"data.train: sample {changing[0]} differs when it is read twice under the same seeds: the data set has a "
        "generator, counter or clock of its own, so a sample depends on earlier reads, and a resumed run reads other "
        "samples. " + _OWN_DRAWS
    )
    return {"state of the data set": text}


def _names(tensors: Sequence[str]) -> str:
    shown = ", ".join(tensors[:3]) + ", ..." * (len(tensors) > 3)
    return f"{len(tensors)} tensor{'s' if len(tensors) > 1 else ''} ({shown})"
