"""The same samples as training sees them, as evaluation sees them, and in between."""

from largebatch.gap_conditions.measurement import Conditions, measure_conditions
from largebatch.gap_conditions.passes import GapData, GapSettings

__all__ = ["Conditions", "GapData", "GapSettings", "measure_conditions"]
