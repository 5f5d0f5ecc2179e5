"""The schema of the section `attribute` of a config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.experiments.study.settings import Metric

# What may be tuned at the large batch: other keys would change the task or the batch.
_TUNABLE = ("scaling.", "optimizer.", "schedule.", "clip_norm")


class AttributionConfig(Section):
    """The batch to compare with, the metric, and how often."""

    small: PositiveInt
    metric: Metric
    seeds: PositiveInt
    orders: Literal["both", "noise_first"]
    tuned: dict[str, Any] | None

    @property
    def is_loss(self) -> bool:
        """Whether a rise of the metric is worse."""
        return self.metric.endswith("loss")

    @field_validator("tuned")
    @classmethod
    def _of_optimization(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if wrong := [key for key in value or () if not key.startswith(_TUNABLE)]:
            raise ValueError(
                f"{wrong[0]} is no hyper-parameter of the optimization. Name keys of scaling, optimizer or schedule, "
                "or clip_norm, such as {scaling.base_lr: 0.1}."
            )
        if "scaling.as_batch" in (value or ()):
            raise ValueError("scaling.as_batch is set by the experiment, for each run. Leave it out.")
        return value
