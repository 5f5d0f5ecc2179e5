"""Schema of the section `observers`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.diagnostics.sharpness.settings import SharpnessSettings
from largebatch.run.config.types import DurationText


class MetricsConfig(Section):
    """Training rows."""

    every: PositiveInt


class EvaluationConfig(Section):
    """Evaluation of train subset and validation set."""

    every: DurationText | None
    micro: PositiveInt


class CheckpointConfig(Section):
    """Checkpoints."""

    every: DurationText | None
    every_minutes: PositiveFloat | None
    keep: PositiveInt
    best_by: Literal["eval/val_loss", "eval/val_accuracy"] | None
    background: bool
    on_error: Literal["warn", "stop"]


class ProfileConfig(Section):
    """torch.profiler."""

    steps: Annotated[int, Field(ge=0)]


class LedgerConfig(Section):
    """ledger.jsonl."""

    enabled: bool
    parameters_every: PositiveInt


class LayersConfig(Section):
    """layers.jsonl."""

    every: PositiveInt | None


class NoiseScaleConfig(Section):
    """Gradient noise scale."""

    every: PositiveInt | None
    window: Annotated[int, Field(ge=20)]
    groups: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], list[str]] | None


class SharpnessObserverConfig(SharpnessSettings):
    """Sharpness during a run."""

    every: DurationText | None
    samples: PositiveInt
    micro: PositiveInt


class CommunicationConfig(Section):
    """Exposed and total communication time."""

    every: PositiveInt | None


class ReplicasConfig(Section):
    """Comparison of step and weights across ranks."""

    every: PositiveInt | None


class StragglersConfig(Section):
    """Ranks that all others wait for."""

    ratio: Annotated[float, Field(gt=1)] | None


class RecomputeConfig(Section):
    """Gradients that each rank computes twice and compares."""

    every: PositiveInt | None


class ObserversConfig(Section):
    """All observers."""

    metrics: MetricsConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    layers: LayersConfig
    noise_scale: NoiseScaleConfig
    communication: CommunicationConfig
    sharpness: SharpnessObserverConfig
    ledger: LedgerConfig
    replicas: ReplicasConfig
    stragglers: StragglersConfig
    recompute: RecomputeConfig
    profile: ProfileConfig
    progress: bool
