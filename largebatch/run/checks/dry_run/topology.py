"""Whether a run with state is the same on any number of ranks, and what is told of it before the first step."""

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
    """Refuse state that ranks would not share, and note what has a rule.

    Raises:
        ConfigError: with all of it.
    """
    plans = numbers.ramp.plans
    world_size, most = plans[0].world_size, max(len(plan.micro_batch_sizes) for plan in plans)
    problems = state_problems(state) | data_problems(dataset, config.seed)
    if problems and world_size > 1:
        raise ConfigError([f"{world_size} ranks: {problem}" for problem in problems.values()])
    # One process is plain torch. Buffers are in its checkpoints; how often they move is told where it is not once.
    findings.notes += [f"state: {text}" for name, text in problems.items() if name != MOVING_TENSORS or most > 1]
    if most > 1 and state.by_step:
        moved = f"a pass that moves {_shown(state.by_step, 'tensor')} of the model"
        if refused := refusals(moved, Ability.ONE_BY_ONE, config, loss, instead=_NOT_MOVED):
            raise ConfigError(refused)
        findings.notes.append(
            f"state: {_shown(state.by_step, 'tensor')} of the model move alike in every pass, so they move once per "
            f"step, as in one big batch: each of its {most} micro-batches starts from what they were when it began."
        )
    if world_size > 1 and state.choices:
        findings.notes.append(
            f"state: the model looks at values on its way ({', '.join(state.choices)}), so it may skip parameters. One "
            "that no micro-batch of a step uses keeps its weight and its optimizer state, as in plain torch; the ranks "
            "agree on it in every step."
        )


def state_problems(state: KeptState) -> dict[str, str]:
    """What of a model has no rule that does not know the ranks: name -> fact, rule and remedy."""
    problems = {}
    if state.by_samples:
        problems[MOVING_TENSORS] = (
            f"{_shown(state.by_samples, 'tensor')} of the model move with the samples of each pass: a rank would have "
            "seen its own micro-batches alone, and no average over ranks is what one process arrives at. Train on one "
            "process, put these modules into eval(), or compute what they hold from the weights."
        )
    if state.is_hidden:
        problems["state outside of buffers"] = (
            "the model or the loss gave something else for the same samples, draws and buffers the second time: it "
            "has a generator, counter or cache of its own, which ranks do not share and a checkpoint does not hold. "
            + _OWN_DRAWS
        )
    return problems


def data_problems(dataset: Any, seed: int) -> dict[str, str]:
    """Whether what is read from a data set depends on what has been read before: name -> fact, rule and remedy."""
    changing = [] if hasattr(dataset, "fetch") else changing_samples(dataset, seed=seed, epochs=(0, 0))
    if not changing:
        return {}
    text = (
        f"data.train: sample {changing[0]} is not the same when it is read twice under the same seeds: the data set "
        "has a generator, counter or clock of its own, so what is read depends on who has read before, and a resumed "
        "run reads something else. " + _OWN_DRAWS
    )
    return {"state of the data set": text}


def _shown(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
