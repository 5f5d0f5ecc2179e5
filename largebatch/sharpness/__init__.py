"""Sharpness of a model on a fixed subset of the data, the same on any number of ranks."""

from largebatch.sharpness.measurement import Sharpness, SharpnessSettings, Slices, measure_sharpness
from largebatch.sharpness.subset import FixedSubset, SubsetLoss
from largebatch.undisturbed import undisturbed

__all__ = [
    "FixedSubset",
    "Sharpness",
    "SharpnessSettings",
    "Slices",
    "SubsetLoss",
    "measure_sharpness",
    "undisturbed",
]
