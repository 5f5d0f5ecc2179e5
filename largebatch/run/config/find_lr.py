"""The schema of what `largebatch find-lr` tries."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section


class FindLrConfig(Section):
    """Rates, seeds, batch sizes and weights of the range tests."""

    min: PositiveFloat
    max: PositiveFloat
    steps: PositiveInt
    seeds: PositiveInt
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    diverged_at: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] | None
    checkpoint: str | None
