"""Makes the observers that a config names by `_target_`, before any process group."""

from __future__ import annotations

from functools import partial
from typing import Any

from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import TargetError, make
from largebatch.training.loop import Observer, absent_methods
from largebatch.training.observers.own_state import require_state_fits


def own_observers(config: TrainConfig, findings: Findings) -> dict[str, Observer]:
    """The user's own observers by name; errors go into the findings."""
    made = dict[str, Observer]()
    for name, node in config.observers.own.items():
        key = f"observers.{name}"
        if (observer := findings.attempt(key, partial(_made, key, node))) is not None:
            made[name] = observer
    return made


def _made(key: str, node: dict[str, Any]) -> Observer:
    made = make(key, node)
    if absent := absent_methods(made):
        raise TargetError(
            f"{key}._target_={node['_target_']}: a {type(made).__name__} has no {' and no '.join(absent)}, which the "
            "loop calls. Let the class inherit from largebatch.Observer, where each method has a default."
        )
    require_state_fits(made)
    observer: Observer = made
    return observer
