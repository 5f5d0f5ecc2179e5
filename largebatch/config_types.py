"""The types that the schema of a configuration is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from largebatch.duration import Duration
from largebatch.nearest import did_you_mean


def _duration(text: Any) -> Any:
    Duration.parse(str(text))
    return text


def switch_or_pattern(value: Any) -> Any:
    """True, false, or a text."""
    if isinstance(value, (bool, str)):
        return value
    raise ValueError("must be true, false, or a regular expression of module names.")


def one_of(choices: Iterable[str]) -> AfterValidator:
    """A text that is one of `choices`; the error names the nearest."""
    names = tuple(choices)

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"choose one of {', '.join(names)}.{did_you_mean(value, names)}")
        return value

    return AfterValidator(check)


DurationText = Annotated[str, BeforeValidator(_duration)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Target = dict[str, Any]


class Section(BaseModel):
    """A group of keys: all of them known, none converted, none changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
