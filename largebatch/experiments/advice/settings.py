"""The schema of the section `advise` of a config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section


class AdviseConfig(Section):
    """What is measured, and for how long."""

    minutes: PositiveFloat
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=2)] | None
    seeds: PositiveInt
    critical_batch: bool
    find_lr: bool
    communication: bool

    @model_validator(mode="after")
    def _consistent(self) -> AdviseConfig:
        if self.batch_sizes and len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError(f"batch_sizes={self.batch_sizes}: a size is listed twice. Name each once.")
        return self
