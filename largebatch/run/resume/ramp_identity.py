"""What the ramp of a run depends on, for the comparison of runs."""

from __future__ import annotations

from typing import Any

from largebatch.run.config.schema import TrainConfig

RAMP_BEFORE: dict[str, Any] = {
    "by": "milestones",
    "milestones": [],
    "totals": [],
    "in_place_of_decay": False,
    "max_total": None,
    "factor": 1.0,
    "confirmations": 3,
    "at_least": None,
}
"""The ramp of runs from before these keys existed."""


def ramp_identity(config: TrainConfig, ramp: dict[str, Any]) -> dict[str, Any]:
    """The section `batch.ramp`, and where a measurement decides all that it depends on: another makes another run."""
    if config.batch.ramp.by != "noise_scale":
        return ramp
    noise = config.observers.noise_scale
    return ramp | {"micro": config.batch.micro, "noise_every": noise.every, "noise_window": noise.window}
