"""Schema of the section `observers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.diagnostics.sharpness.settings import SharpnessSettings
from largebatch.run.config.types import DurationText, Target


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
    best_by: str | None
    best_mode: Literal["min", "max"] | None
    background: bool
    on_error: Literal["warn", "stop"]


class EarlyStoppingConfig(Section):
    """The end of a run whose metric does not improve any more."""

    metric: str | None
    patience: DurationText | None
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    mode: Literal["min", "max"] | None


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
    geometry: Literal["euclidean", "optimizer"]
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


def _own(value: Any) -> Any:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise PydanticCustomError("extra_forbidden", "neither one of ours nor a node with _target_")
    return value


class ObserversConfig(Section):
    """All observers. A key that is not among them is an observer of the user's own, a node with `_target_`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_own)]] = Field(init=False)

    metrics: MetricsConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    early_stopping: EarlyStoppingConfig
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

    @property
    def own(self) -> dict[str, Target]:
        """The nodes of the user's own observers by name, in their order."""
        return dict(self.model_extra or {})
