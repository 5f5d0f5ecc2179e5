"""Schema of the section `measure`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from largebatch.diagnostics.critical_batch.branches import LEAST_WINDOWS
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.diagnostics.sharpness.settings import LandscapeSettings, SharpnessSettings


class SharpnessConfig(SharpnessSettings, LandscapeSettings):
    """Estimators of sharpness."""


class VarianceConfig(Section):
    """Gradient variance over batch sizes."""

    batch_sizes: list[PositiveInt] | None
    replications: Annotated[int, Field(ge=2)]  # one has no spread


class CommunicationConfig(Section):
    """How often steps and all-reduces are timed, and for how many ranks the step is predicted."""

    pairs: Annotated[int, Field(ge=10)]  # the interval of a median needs them
    sizes: Annotated[int, Field(ge=4)]
    repetitions: PositiveInt
    ranks: list[Annotated[int, Field(ge=2)]]


class GapConfig(Section):
    """The parts of the gap."""

    draws: PositiveInt
    ghost: PositiveInt | None
    resamples: Annotated[int, Field(ge=100)]  # fewer do not resolve the 2.5 % quantile


class CriticalBatchConfig(Section):
    """Branches of several batch sizes over the same samples."""

    factors: list[PositiveFloat] | None
    rate_factors: Annotated[list[PositiveFloat], Field(min_length=1)]
    pilot_windows: PositiveInt
    steps: Annotated[int, Field(ge=2)]  # one has no half
    windows: Annotated[int, Field(ge=LEAST_WINDOWS)]
    tolerance: PositiveFloat
    evaluate_on: Literal["validation", "train"]
    evaluation_samples: PositiveInt | None


class MeasureConfig(Section):
    """Weights and samples."""

    checkpoint: str | None
    precision: Literal["fp64", "fp32"] | None
    samples: PositiveInt | None
    micro: PositiveInt
    sharpness: SharpnessConfig
    variance: VarianceConfig
    communication: CommunicationConfig
    gap: GapConfig
    critical_batch: CriticalBatchConfig
