"""Schema of the section `cost`: what an hour of a device costs, in money and in watts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largebatch.diagnostics.settings import PositiveFloat, Section


class CostConfig(Section):
    """What is known of the price of the devices; null: not known, and nothing is estimated from it.

    Attributes:
        device_hour: price of an hour of the device of one rank.
        currency: its name, as it is printed.
        device_watts: power of the device of one rank while it trains, for devices whose power torch cannot read.
    """

    device_hour: PositiveFloat | None = None
    currency: Annotated[str, Field(min_length=1, max_length=12, pattern=r"^[^\s<>&]+$")] | None = None
    device_watts: PositiveFloat | None = None

    def problems(self) -> list[str]:
        """Settings without effect."""
        if self.currency is not None and self.device_hour is None:
            return [f"cost.currency={self.currency}: has no effect without cost.device_hour, the price in it."]
        return []
