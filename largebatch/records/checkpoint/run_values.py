"""The plain values of a run's checkpoint: their schema, as strict as that of a config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from largebatch.records.checkpoint.loading import Checkpoint
from largebatch.records.checkpoint.manifest import CheckpointError
from largebatch.records.checkpoint.reading import brief, plain

Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Scalar = str | int | float | bool | None
# What W&B takes; no path and no control sequence can be made of it.
RunId = Annotated[str, Field(pattern=r"^[^/\\#?%:\x00-\x1f\x7f]{1,128}$")]
_MOST_FAULTS = 3


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Identity(_Values, extra="allow"):
    """Further keys, and the contents of the sections, are compared with the config that is given."""

    seed: int
    length: str
    clip_norm: float | None
    scaling: dict[str, Any]
    schedule: dict[str, Any]
    optimizer: dict[str, Any]
    parameters: dict[str, Any]
    model: dict[str, Any]
    loss: dict[str, Any]
    global_batch_size: Count
    precision: str
    data: dict[str, Any]
    content: str | None = None
    guard: dict[str, Any] | None = None
    ramp: dict[str, Any] | None = None
    model_files: dict[str, str] | None = None
    code: dict[str, str] = {}
    # A change of these needs no permission, so nobody else would look at them.
    arithmetic: dict[str, bool | Literal["blocks"] | None] = {}


class PackedGroup(_Values):
    """A parameter group; see `pack_optimizer`."""

    shapes: dict[str, list[Count]]
    options: dict[str, Scalar | list[Scalar]]
    tensors: list[str]
    not_saved: list[str]


class PackedState(_Values):
    """The state of one parameter."""

    tensors: list[str]
    scalars: dict[str, Scalar]


class PackedOptimizer(_Values):
    """The plain values of an optimizer."""

    optimizer: str
    groups: list[PackedGroup]
    state: dict[str, PackedState]


class _LossScale(_Values):
    """The state of torch's GradScaler."""

    scale: Positive
    growth_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1)]
    growth_tracker: Annotated[Count, Field(alias="_growth_tracker")]


class _NoLossScale(_Values):
    """A run without a loss scale."""


class _Counts(_Values):
    bad: Count
    skipped: Count
    rolled_back: Count
    overflows: Count


class _Guard(_Values):
    losses: list[Finite]
    grad_norms: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    in_a_row: Count
    counts: _Counts


class _Split(_Values):
    num_measured: Count
    adds_up: bool


class _Gradient(_Values):
    bucket_order: list[str]
    split: _Split


class _Batches(_Values):
    planned: Annotated[int, Field(ge=1)]
    lowered: Annotated[int, Field(ge=1)]


class _NoiseScale(_Values):
    """Name and size of each group of parameters; the measured pairs of all parameters and of each group."""

    groups: list[Annotated[list[str | int], Field(min_length=2, max_length=2)]]
    measurements: list[list[Annotated[list[Finite], Field(min_length=2, max_length=2)]]]
    of_optimizer: list[list[Annotated[list[Finite], Field(min_length=2, max_length=2)]]] | None = None

    @model_validator(mode="after")
    def _paired(self) -> _NoiseScale:
        if any(len(one) != len(self.groups) + 1 for one in (self.measurements, self.of_optimizer) if one is not None):
            raise ValueError("as many measurements as groups, and those of all parameters")
        return self


class _Skipped(_Values):
    of_validation: list[Count]


class _EarlyStopping(_Values):
    key: str
    best: Finite | None
    best_at: Count


class _GrowthDecision(_Values):
    """One change of the batch, with its evidence; see `GrowthDecision`."""

    samples_seen: Annotated[int, Field(ge=1, lt=2**63)]
    total: Annotated[int, Field(ge=1, lt=2**63)]
    because: Literal["noise_scale", "rollback"]
    value: Finite | None
    low: Finite | None
    high: Finite | None
    num_measurements: Count


class _Growth(_Values):
    decisions: list[_GrowthDecision]
    in_a_row: Count


class _Observers(_Values, extra="allow"):
    NoiseScaleObserver: _NoiseScale = None  # type: ignore[assignment]  # absent, but never null
    SkippedObserver: _Skipped = None  # type: ignore[assignment]
    EarlyStoppingObserver: _EarlyStopping = None  # type: ignore[assignment]
    GrowthObserver: _Growth = None  # type: ignore[assignment]


class _Memory(_Values):
    """Further state that a resumed run needs; see `memory_of`."""

    world_size: Annotated[int, Field(ge=1)]
    gradient: _Gradient
    batches: _Batches
    observers: _Observers


class _OwnObserver(_Values):
    """The state of an observer of the user's own, as `pack_nested` makes it."""

    kind: Annotated[str, Field(alias="class")]
    state: Any


class _Ema(_Values):
    """Samples that an average of the weights stands for."""

    counted: Count
    waiting: Count


class _Extra(_Values, extra="allow"):
    wandb_run_id: RunId | None = None
    mlflow_run_id: RunId | None = None
    trackio_run_name: str | None = None


class _RunValues(_Values, extra="allow"):
    """Keys with a default are newer than the first checkpoints; a later version of the format may add more."""

    step: Count
    samples_seen: Count
    identity: _Identity
    optimizer: PackedOptimizer
    loss_scale: Annotated[
        Annotated[_LossScale, Tag("some")] | Annotated[_NoLossScale, Tag("none")],
        Discriminator(lambda value: "some" if value else "none"),
    ]
    extra: _Extra
    best: dict[str, Finite] = {}
    evaluation_owed: bool = False
    guard: _Guard = None  # type: ignore[assignment]  # absent, but never null
    memory: _Memory = None  # type: ignore[assignment]
    own_observers: dict[str, _OwnObserver] = {}
    ema: _Ema = None  # type: ignore[assignment]


def require_run_values(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless its values are those of a run, of the right types and ranges."""
    require_values(_RunValues, checkpoint.values, str(checkpoint.path))
    if checkpoint.values["step"] != checkpoint.step:
        raise CheckpointError(
            f"{checkpoint.path}: its values are of step {checkpoint.values['step']}, its manifest of step "
            f"{checkpoint.step}. Use an older checkpoint."
        )


def require_values(schema: type[BaseModel], values: Any, source: str) -> None:
    """Raise CheckpointError, with the first faults, for values that are not as a schema says."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        first = "; ".join(_fault_text(fault) for fault in faults[:_MOST_FAULTS])
        more = f"; and {len(faults) - _MOST_FAULTS} more" if faults[_MOST_FAULTS:] else ""
        raise CheckpointError(f"{source}: {first}{more}. Use an older checkpoint.") from None


_RULES = {"model_type": "must be values under names", "dict_type": "must be values under names"}


def _fault_text(fault: Any) -> str:
    key = plain(".".join(map(str, fault["loc"])))
    if fault["type"] == "missing":
        return f"{key} is missing"
    return f"{key}={brief(fault['input'])}: {_RULES.get(fault['type'], fault['msg'].lower())}"
