"""Schema of the section `ema`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.run.config.types import DurationText


class EmaConfig(Section):
    """The average of the weights; none without a half-life, a decay or `uniform`."""

    half_life: DurationText | None
    decay: Annotated[float, Field(gt=0, lt=1)] | None
    decay_batch_size: PositiveInt | None
    uniform: bool
    start: DurationText | None
    every: PositiveInt

    @property
    def is_used(self) -> bool:
        """Whether there is one."""
        return self.half_life is not None or self.decay is not None or self.uniform

    def problems(self) -> list[str]:
        """Settings that exclude each other, or have no effect."""
        kinds = {"half_life": self.half_life, "decay": self.decay, "uniform": self.uniform or None}
        given = [f"ema.{name}={value}" for name, value in kinds.items() if value is not None]
        if len(given) > 1:
            return [f"{' and '.join(given)}: are {len(given)} averages, and a run has one. Leave one of them."]
        problems = []
        if self.decay is None and self.decay_batch_size is not None:
            problems.append(f"ema.decay_batch_size={self.decay_batch_size}: has no effect without ema.decay.")
        if not given and (self.start is not None or self.every > 1):
            problems.append("ema.start, ema.every: have no effect without ema.half_life, ema.decay or ema.uniform.")
        return problems
