"""Schema of the section `scaling`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from largebatch.batch.duration import Duration
from largebatch.batch.memory_rules import MEMORY_RULES
from largebatch.batch.scaling import SCALING_RULES
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.run.config.types import HalfLife, HalfLives, SampleCount, one_of

_FOLLOWING = ("momentum", "betas", "eps", "weight_decay", "clip_norm")


class ScalingConfig(Section):
    """What follows the batch: the peak rate from the base rate, other hyperparameters from their base values."""

    rule: Annotated[str, one_of(SCALING_RULES)]
    base_lr: PositiveFloat
    base_batch_size: SampleCount
    as_batch: PositiveInt | None = None
    momentum: HalfLife = "none"
    betas: HalfLives = "none"
    eps: Literal["none", "sde"] = "none"
    weight_decay: Literal["none", "timescale"] = "none"
    clip_norm: Literal["none", "noise"] = "none"
    beta_bounds: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None

    @field_validator("momentum", "betas")
    @classmethod
    def _rule_or_half_life(cls, value: Any) -> Any:
        for one in value if isinstance(value, list) else [value]:
            if one not in MEMORY_RULES and Duration.parse(one).unit == "steps":
                raise ValueError("a half-life in steps follows no batch. Write it in samples, tokens or epochs.")
        return value

    @property
    def beta_rules(self) -> tuple[str, str]:
        """Of beta1 and beta2."""
        return (self.betas, self.betas) if isinstance(self.betas, str) else (self.betas[0], self.betas[1])

    @property
    def following(self) -> dict[str, Any]:
        """What follows the batch besides the rate, with its rule."""
        values = {name: getattr(self, name) for name in _FOLLOWING}
        return {name: value for name, value in values.items() if value not in ("none", ["none", "none"])}

    def problems(self, clip_norm: float | None) -> list[str]:
        """Settings without effect, or that exclude each other."""
        problems = []
        if self.beta_bounds is not None and not {"momentum", "betas"} & self.following.keys():
            problems.append("scaling.beta_bounds: has no effect without scaling.momentum or scaling.betas. Remove it.")
        if self.beta_bounds is not None and self.beta_bounds[0] > self.beta_bounds[1]:
            problems.append(f"scaling.beta_bounds={self.beta_bounds}: the smallest beta, then the largest. Swap them.")
        if self.clip_norm != "none" and clip_norm is None:
            problems.append(
                f"scaling.clip_norm={self.clip_norm}: has no effect without clip_norm. Set it, or remove this."
            )
        return problems


SCALING_BEFORE = {name: field.default for name, field in ScalingConfig.model_fields.items() if not field.is_required()}
"""The values that runs had before these keys existed: nothing but the rate followed the batch."""
