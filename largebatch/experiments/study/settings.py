"""The schema of the section `study` of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from largebatch.diagnostics.settings import PositiveInt, Section

Metric = Literal["eval/val_loss", "eval/train_loss", "eval/val_accuracy", "eval/train_accuracy"]


class RangeConfig(Section):
    """The search range of a number of the config."""

    key: str
    low: float
    high: float
    scale: Literal["log", "linear", "one_minus_log"]

    @model_validator(mode="after")
    def _ordered(self) -> RangeConfig:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g}, high={self.high:g}: a range goes up. Swap them, or widen it.")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low={self.low:g}: a logarithmic range is above 0. Raise it, or use scale=linear.")
        if self.scale == "one_minus_log" and self.high >= 1:
            raise ValueError(f"high={self.high:g}: this scale needs 1 - value above 0. Lower it.")
        return self


class TargetConfig(Section):
    """The metric and value that a run has to reach."""

    metric: Metric
    value: float

    @model_validator(mode="after")
    def _reachable(self) -> TargetConfig:
        if not self.metric.endswith("loss") and not 0 <= self.value <= 1:
            share = f", such as {self.value / 100:g} for {self.value:g} %" if 1 < self.value <= 100 else ""
            raise ValueError(f"{self.metric} is a share, and {self.value:g} is not from 0 to 1. Give one{share}.")
        return self

    @property
    def direction(self) -> Literal["below", "above"]:
        """A loss is to fall, an accuracy to rise."""
        return "below" if self.metric.endswith("loss") else "above"

    def is_reached(self, value: float) -> bool:
        """Whether the metric is at the target, or beyond."""
        return value <= self.value if self.direction == "below" else value >= self.value

    def is_better(self, value: float, other: float) -> bool:
        """Whether one value lies closer to the target's side than another."""
        return value < other if self.direction == "below" else value > other


class StudyConfig(Section):
    """Batch sizes, optimizers, and how they are tuned."""

    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    optimizers: Annotated[list[str], Field(min_length=1)]
    trials: PositiveInt
    seeds: PositiveInt
    target: TargetConfig
    resolution: Annotated[float, Field(gt=0, le=0.5)]
    hopeless: Annotated[float, Field(gt=0, le=1)] | None
    draw_seed: Annotated[int, Field(ge=0)]
    joint_scaling: bool = True
    workers: PositiveInt
    shares: PositiveInt
    share: Annotated[int, Field(ge=0)]
    search: dict[str, dict[str, RangeConfig | None]]

    def ranges(self, optimizer: str) -> dict[str, RangeConfig]:
        """The search ranges of an optimizer; null removes one."""
        return {name: one for name, one in self.search.get(optimizer, {}).items() if one is not None}

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        for name in ("batch_sizes", "optimizers"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: an entry is listed twice. Name each once.")
        if self.share >= self.shares:
            raise ValueError(f"share={self.share}: {self.shares} shares are 0 to {self.shares - 1}. Choose one.")
        if absent := [name for name in self.optimizers if not self.ranges(name)]:
            raise ValueError(
                f"search has no range for {', '.join(absent)}: untuned optimizers do not compare. Declare one, as "
                f"study.search.{absent[0]}.lr={{key: scaling.base_lr, low: 0.001, high: 1.0, scale: log}}."
            )
        return self
