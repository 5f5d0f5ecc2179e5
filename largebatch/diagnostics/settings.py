"""What settings are made of: those of a measurement are at once the section of a config that gives them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A group of keys: all of them known, none converted, none changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
