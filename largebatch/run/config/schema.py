"""Schema of a run's configuration: names, types and ranges."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from largebatch.batch.growth import GROWTHS
from largebatch.diagnostics.outliers import FEWEST_VALUES
from largebatch.diagnostics.predictions.cost import CostConfig
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.run.config.augment import AugmentConfig
from largebatch.run.config.averages import EmaConfig
from largebatch.run.config.cooldown import CooldownConfig
from largebatch.run.config.did_you_mean import did_you_mean
from largebatch.run.config.logger import LoggerConfig
from largebatch.run.config.observers import ObserversConfig
from largebatch.run.config.precision import PrecisionConfig
from largebatch.run.config.sam import SamConfig
from largebatch.run.config.scaling import ScalingConfig
from largebatch.run.config.schedule import ScheduleConfig
from largebatch.run.config.types import (
    DurationText,
    FolderName,
    FolderPath,
    MetricName,
    SampleCount,
    Target,
    is_in_tokens,
    one_of,
)

# Sections that `resume_allow` may change at a resume. None of them changes sample order or the restored weights.
CHANGEABLE = (
    "length",
    "schedule",
    "scaling",
    "clip_norm",
    "guard",
    "content",
    "batch_norm",
    "gradient_compression",
    "start_weights",
    "ema",
)
_ONE_BY_ONE = ("optimizer", "model", "loss", "data.augment")  # sections whose values are named one by one
_RENAMED = ("data.name",)


def is_changeable(key: str) -> bool:
    """Whether `resume_allow` may name this value of the config."""
    if key in _RENAMED or key.partition(".")[0] in CHANGEABLE:
        return True
    return any(key.startswith(f"{section}.") for section in _ONE_BY_ONE)


def _permission(value: str) -> str:
    if not is_changeable(value):
        raise ValueError(
            f"choose from {', '.join(CHANGEABLE)}, or name a single value, such as optimizer.weight_decay, "
            f"model.dropout, loss.label_smoothing, data.augment.flip.{did_you_mean(value, CHANGEABLE)}"
        )
    return value


class RampConfig(Section):
    """How the batch changes over the run."""

    by: Literal["milestones", "noise_scale"]
    milestones: list[DurationText]
    totals: list[SampleCount]
    in_place_of_decay: bool
    max_total: SampleCount | None
    factor: PositiveFloat
    confirmations: PositiveInt
    at_least: DurationText | None
    growth: Annotated[str, one_of(tuple(GROWTHS))] | None = None
    stage_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None

    @property
    def is_used(self) -> bool:
        """Whether the batch changes over the run."""
        return bool(self.milestones or self.totals or self.in_place_of_decay or self.by == "noise_scale")


class BatchConfig(Section):
    """Samples per optimizer step, and the most samples of one forward pass."""

    total: Any
    max_micro: SampleCount | None
    micro: SampleCount | None
    reduction: Literal["all_reduce", "ordered"]
    on_out_of_memory: Literal["stop", "lower"]
    ramp: RampConfig

    @field_validator("total")
    @classmethod
    def _total(cls, value: Any) -> Any:
        if value == "full" or is_in_tokens(value):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        whole = isinstance(value, float) and value.is_integer()
        hint = f" Write {int(value)}." if whole else ""
        raise ValueError(
            "a batch is a whole number of samples, 1 or more, whole tokens such as 0.5Mitokens (524,288), or `full`."
            f"{hint}"
        )


class ParametersConfig(Section):
    """Parameters without decay or adaptation, and parameters with their own learning rates."""

    exclude_from_decay: list[str]
    exclude_from_adaptation: list[str]
    lr_factor: dict[str, PositiveFloat] | None
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None
    layer_pattern: str
    freeze: list[Annotated[str, Field(min_length=1)]]
    frozen_norms: Literal["hold", "move"]


class StreamConfig(Section):
    """Of sets that are streams."""

    samples: PositiveInt | None
    kept: PositiveInt
    validation: PositiveInt


class DataConfig(Section):
    """Training and validation set, and their sizes that models need."""

    name: str
    train: Target
    validation: Target
    augment: AugmentConfig
    limit: PositiveInt | None
    label_noise: Annotated[float, Field(ge=0, le=1)]
    num_workers: Annotated[int, Field(ge=0)]
    prefetch: Annotated[int, Field(ge=0)] | None
    timeout_s: Annotated[float, Field(ge=0)]
    on_bad_sample: Literal["stop", "skip"]
    collate_fn: Target | None
    stream: StreamConfig
    train_plain: Target | None = None
    order: Literal["sequential"] | Target | None = None
    path: str | list[str] | None = None
    num_classes: PositiveInt | None = None
    num_channels: PositiveInt | None = None
    num_features: PositiveInt | None = None
    image_size: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    context_length: PositiveInt | None = None

    @property
    def skips(self) -> bool:
        """Whether bad samples are left out."""
        return self.on_bad_sample == "skip"


class GuardConfig(Section):
    """The reaction to a step with a bad loss or gradient."""

    policy: Literal["off", "log", "skip", "rollback"]
    window: Annotated[int, Field(ge=FEWEST_VALUES)]
    threshold: PositiveFloat | None
    most_in_a_row: PositiveInt

    @property
    def acts(self) -> bool:
        """Whether it may change the training."""
        return self.policy in ("skip", "rollback")


class LauncherConfig(Section):
    """Expected number of processes, and time limits."""

    num_processes: PositiveInt | None
    rendezvous_timeout_s: PositiveFloat
    start_timeout_s: PositiveFloat
    collective_timeout_s: PositiveFloat
    heartbeat_s: PositiveFloat
    silence_timeout_s: PositiveFloat


class RunConfig(Section):
    """Name and folder."""

    name: FolderName | None
    title: FolderName | None
    dir: FolderPath | None
    root: FolderPath
    predict_from: FolderPath


class TrainConfig(Section):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    length: DurationText
    clip_norm: PositiveFloat | None
    batch_norm: Literal["per_micro_batch", "exact"]
    resume: FolderPath
    resume_allow: list[Annotated[str, AfterValidator(_permission)]]
    run: RunConfig
    batch: BatchConfig
    scaling: ScalingConfig
    schedule: ScheduleConfig
    optimizer: Target
    parameters: ParametersConfig
    model: Target
    data: DataConfig
    loss: Target
    precision: PrecisionConfig
    guard: GuardConfig
    metrics: dict[MetricName, Target]
    sam: SamConfig
    ema: EmaConfig
    cooldown: CooldownConfig
    observers: ObserversConfig
    logger: LoggerConfig
    launcher: LauncherConfig
    cost: CostConfig

    @property
    def shown_name(self) -> str:
        """Name of the run on charts."""
        return self.run.name or self.run.title or self.data.name

    @property
    def folder_name(self) -> str:
        """Name of the run's folder. The name of a data set may be a path, as on a hub: its / becomes -."""
        return self.run.name or self.run.title or re.sub(r"[^\w+=-]+", "-", self.data.name).strip("-") or "run"


class VerifyScalingConfig(Section):
    """The section `verify.scaling`."""

    factors: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]


class VerifyConfig(Section):
    """The section `verify`."""

    world_sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    steps: PositiveInt
    precision: Literal["fp64", "fp32"]
    tolerance: PositiveFloat | None
    scaling: VerifyScalingConfig
