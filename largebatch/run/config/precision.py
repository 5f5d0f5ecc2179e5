"""Schema of the section `precision`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.run.config.types import switch_or_blocks, switch_or_pattern


class PowerSGDConfig(Section):
    """Options of torch's PowerSGDState."""

    matrix_approximation_rank: PositiveInt
    start_powerSGD_iter: Annotated[int, Field(ge=2)]  # noqa: N815, torch's name
    min_compression_rate: PositiveFloat
    use_error_feedback: bool
    warm_start: bool
    orthogonalization_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    batch_tensors_with_same_shape: bool


class PrecisionConfig(Section):
    """Number formats and memory."""

    compute: Literal["auto", "fp64", "fp32", "bf16", "fp16"]
    tf32: bool | None
    deterministic: bool | None
    channels_last: bool | None
    compile: Annotated[bool | Literal["blocks"], BeforeValidator(switch_or_blocks)]
    activation_checkpointing: Annotated[bool | str, BeforeValidator(switch_or_pattern)]
    gradient_compression: Literal["none", "fp16", "bf16", "powersgd"]
    powersgd: PowerSGDConfig
    bucket_mb: PositiveFloat
    peak_tflops: PositiveFloat | None

    @property
    def compressed(self) -> dict[str, Any]:
        """How gradients are compressed between ranks. PowerSGD remembers by bucket, so the size of buckets counts."""
        if self.gradient_compression != "powersgd":
            return {"kind": self.gradient_compression}
        return {"kind": "powersgd", "bucket_mb": self.bucket_mb, **self.powersgd.model_dump()}
