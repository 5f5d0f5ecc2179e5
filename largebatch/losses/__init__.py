"""Losses: sums per sample, and the number of their units."""

from largebatch.losses.as_loss import as_loss
from largebatch.losses.auxiliary_losses import require_no_dropped_loss
from largebatch.losses.coupled import CoupledLoss, InfoNCE, is_coupled
from largebatch.losses.cross_entropy import CrossEntropy, NextToken
from largebatch.losses.label_rule import LabelRule, label_rule, require_labels, scored
from largebatch.losses.mixed_labels import MixedLabels
from largebatch.losses.module_loss import ModuleLoss
from largebatch.losses.protocol import Loss, counted_per_sample, units_are_fixed, widens_outputs
from largebatch.losses.regression import OutputIsLoss, SquaredError

__all__ = [
    "CoupledLoss",
    "CrossEntropy",
    "InfoNCE",
    "LabelRule",
    "Loss",
    "MixedLabels",
    "ModuleLoss",
    "NextToken",
    "OutputIsLoss",
    "SquaredError",
    "as_loss",
    "counted_per_sample",
    "is_coupled",
    "label_rule",
    "require_labels",
    "require_no_dropped_loss",
    "scored",
    "units_are_fixed",
    "widens_outputs",
]
