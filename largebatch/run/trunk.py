"""The run that a cooldown leaves, and the place where it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.batch.cooldown import CooledTrunk, cooled_from
from largebatch.batch.noise_growth import GrowthDecision
from largebatch.batch.schedule import Schedule
from largebatch.records.checkpoint import CheckpointError, position_of
from largebatch.records.checkpoint.reading import reason
from largebatch.records.run_folder import RunFolder
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig
from largebatch.training.observers.growth import decisions_in


@dataclass(frozen=True)
class Trunk:
    """Where a branch begins.

    Attributes:
        checkpoint: of the trunk.
        step, samples_seen: its position.
        decisions: about the batch of a trunk that grows by its noise scale, up to there.
    """

    checkpoint: Path
    step: int
    samples_seen: int
    decisions: tuple[GrowthDecision, ...] = ()

    def record(self) -> dict[str, Any]:
        """As plain values, for plan.json and summary.json."""
        return {"checkpoint": str(self.checkpoint), "step": self.step, "samples_seen": self.samples_seen}


def trunk_of(config: TrainConfig) -> Trunk | None:
    """The place at which the run leaves its trunk; None: it leaves none.

    The checkpoint says it, on every rank. A branch that goes on by itself (resume=auto) may have lost it, or lose it
    just now, since the trunk keeps only its newest ones: then the branch's own plan.json says it.

    Raises:
        ConfigError: if neither can be read, or the section makes no sense.
    """
    cooldown = config.cooldown
    if problems := cooldown.problems():
        raise ConfigError(problems)
    if cooldown.checkpoint is None:
        return None
    path = Path(cooldown.checkpoint)
    if problem := _path_problem(path):
        problem = f"cooldown.checkpoint={path}: {problem}"
    else:
        try:
            step, samples_seen, values = position_of(path)
            return Trunk(path, step, samples_seen, _decisions(path, values))
        except CheckpointError as error:
            problem = f"cooldown.checkpoint: {error}"
    if config.resume != "none" and (known := _recorded(config, path)) is not None:
        return known
    raise ConfigError([problem])


def cooled_schedule(
    config: TrainConfig, schedule: Schedule, trunk: Trunk, batch_size: int, samples: Callable[[str], int]
) -> Schedule:
    """The trunk's schedule, left at `trunk`.

    Args:
        config: of the run.
        schedule: that the same config has without the cooldown.
        trunk: the place.
        batch_size: of the step that begins there.
        samples: reads a duration.

    Raises:
        ConfigError: if the cooldown holds no step, or cannot begin there.
    """
    cooldown = config.cooldown
    assert cooldown.length is not None
    length = samples(cooldown.length)
    if length < batch_size:
        raise ConfigError(
            [f"cooldown.length={cooldown.length}: {length:,} samples are less than one batch of {batch_size:,}. Give "
             f"{batch_size}samples or more."]
        )  # fmt: skip
    try:
        return cooled_from(
            schedule,
            trunk.samples_seen,
            samples=length,
            shape=cooldown.shape or "linear",
            end_factor=cooldown.end_factor or 0.0,
        )
    except ValueError as error:
        raise ConfigError([f"cooldown.checkpoint={trunk.checkpoint}: {error}"]) from None


def branch_identity(schedule: Schedule) -> dict[str, Any] | None:
    """What of a cooldown belongs to the identity of a run; None: it has none."""
    if not isinstance(decay := schedule.decay, CooledTrunk):
        return None
    cooldown = decay.cooldown
    return {
        "samples_seen": decay.start,
        "samples": cooldown.samples,
        "shape": cooldown.shape,
        "end_factor": decay.end_factor,
    }


def branch_problems(config: TrainConfig) -> list[str]:
    """An error if the run would write into the folder of its trunk."""
    given, folder = config.cooldown.checkpoint, config.run.dir
    if given is None or folder is None or Path(folder).resolve() not in Path(given).resolve().parents:
        return []
    return [f"run.dir={folder}: is the folder of the trunk, which stays as it is. Give the cooldown another run.dir."]


def _path_problem(path: Path) -> str | None:
    if not path.is_dir():
        return (
            "there is no such folder. Name a checkpoint of the trunk; observers.checkpoint.keep says how many it keeps."
        )
    if path.name.startswith("step_"):
        return None
    steps = sorted(path.glob("checkpoints/step_*")) + sorted(path.glob("step_*"))
    newest = f", such as {steps[-1]}" if steps else ""
    return f"is no checkpoint. The newest one of a run changes, and a cooldown begins at one place: name it{newest}."


def _decisions(path: Path, values: dict[str, Any]) -> tuple[GrowthDecision, ...]:
    try:
        return tuple(decisions_in(values))
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its decisions about the batch cannot be read: {reason(error)}. Use an older checkpoint."
        ) from error


def _recorded(config: TrainConfig, path: Path) -> Trunk | None:
    from largebatch.records.report.run_files import read_json

    if config.run.dir is None:
        return None
    try:
        plan = read_json(RunFolder(Path(config.run.dir)).path / "plan.json")
        known = plan["trunk"]
        step, samples_seen = known["step"], known["samples_seen"]
        decisions = [GrowthDecision.of(one) for one in plan.get("growth", {}).get("decisions", ())]
        of_trunk = tuple(one for one in decisions if one.samples_seen <= samples_seen)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_same = known.get("checkpoint") == str(path) and isinstance(step, int) and isinstance(samples_seen, int)
    return Trunk(path, step, samples_seen, of_trunk) if is_same else None
