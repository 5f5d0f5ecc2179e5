"""Schema of the section `plan`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from largebatch.diagnostics.memory.budget import parse_bytes
from largebatch.diagnostics.settings import PositiveInt, Section


def _switch_or_bytes(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else parse_bytes(str(value))


class PlanConfig(Section):
    """What is predicted, and how it is printed.

    Attributes:
        memory: whether a rank's memory is predicted, or bytes of a device that it is to fit into.
        device: whose rules the prediction follows.
        dry_run: whether the run is tried on this machine; if not, no weights are made.
        format: how the plan is printed.
        advise: whether advice on the batch size is printed in place of the plan.
        measured: folders of runs and records that the advice rests on.
        batch_sizes: its candidates; None: around the batch of the config.
        picture: the PNG that it draws; None: none.
    """

    memory: Annotated[bool | int | None, BeforeValidator(_switch_or_bytes)]
    device: Literal["cuda", "cpu"]
    dry_run: bool
    format: Literal["table", "json"]
    advise: bool
    measured: list[Annotated[str, Field(min_length=1)]]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] | None
    picture: Annotated[str, Field(min_length=1, pattern=r"\.png$")] | None

    @model_validator(mode="after")
    def _consistent(self) -> PlanConfig:
        given = {"measured": self.measured, "batch_sizes": self.batch_sizes, "picture": self.picture}
        if not self.advise and (without := [key for key, value in given.items() if value]):
            raise ValueError(f"{', '.join(without)}: only advice reads them. Add plan.advise=true, or leave them out.")
        if self.batch_sizes and len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError(f"batch_sizes={self.batch_sizes}: a size is listed twice. Name each once.")
        return self
