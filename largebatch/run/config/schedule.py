"""Schema of the section `schedule`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from largebatch.batch.decays import COOLDOWN_SHAPES, Cooldown, InverseSqrt, Restarts
from largebatch.batch.schedule import DECAYS, WARMUP_KINDS
from largebatch.diagnostics.settings import PositiveFloat, Section
from largebatch.run.config.did_you_mean import did_you_mean
from largebatch.run.config.types import DurationText, one_of


def _decay(value: Any) -> Any:
    if isinstance(value, dict):
        if "_target_" not in value:
            raise ValueError("names no function. Choose schedule=own schedule.decay._target_=MODULE.FUNCTION.")
        return value
    names = (*DECAYS, *(one.name for one in (Cooldown, Restarts, InverseSqrt)))
    if value not in names:
        raise ValueError(f"choose one of {', '.join(names)}.{did_you_mean(str(value), names)}")
    return value


class ScheduleConfig(Section):
    """Warmup and decay; None: the setting follows from the run, or the decay does not use it."""

    warmup: DurationText | None
    warmup_kind: Annotated[str, one_of(WARMUP_KINDS)]
    warmup_from: Literal["base_lr", "zero"] | None
    decay: Annotated[Any, AfterValidator(_decay)]
    end_factor: Annotated[float, Field(ge=0, le=1)] | None = None
    power: PositiveFloat | None = None
    milestones: list[DurationText] | None = None
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None
    cooldown: DurationText | None = None
    cooldown_shape: Annotated[str, one_of(COOLDOWN_SHAPES)] | None = None
    cycle: DurationText | None = None
    cycle_growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    timescale: DurationText | None = None

    @property
    def decay_name(self) -> str:
        """Name of the decay; `own` for the user's."""
        return self.decay if isinstance(self.decay, str) else "own"
