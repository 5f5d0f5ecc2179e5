"""Schema of the section `cooldown`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largebatch.batch.decays import COOLDOWN_SHAPES
from largebatch.diagnostics.settings import Section
from largebatch.run.config.types import DurationText, FolderPath, one_of


class CooldownConfig(Section):
    """A run that leaves another one at a checkpoint and lowers the rate; none without `checkpoint`."""

    checkpoint: FolderPath | None
    length: DurationText | None
    shape: Annotated[str, one_of(COOLDOWN_SHAPES)] | None
    end_factor: Annotated[float, Field(ge=0, lt=1)] | None

    @property
    def is_used(self) -> bool:
        """Whether the run is a branch."""
        return self.checkpoint is not None

    def problems(self) -> list[str]:
        """Settings without effect, or a length that is missing."""
        given = {name: getattr(self, name) for name in ("length", "shape", "end_factor")}
        if self.checkpoint is None:
            return [
                f"cooldown.{name}={value}: has no effect without cooldown.checkpoint. Name a checkpoint of the run to "
                "leave, such as runs/trunk/checkpoints/step_00001000, or remove it."
                for name, value in given.items()
                if value is not None
            ]
        if self.length is None:
            return [
                f"cooldown.checkpoint={self.checkpoint}: needs the length of the cooldown, such as cooldown.length=5ep."
            ]
        return []
