"""Losses: sums per sample, and what they are divided by."""

from largebatch.losses.cross_entropy import CrossEntropy, NextToken
from largebatch.losses.label_rule import LabelRule, label_rule, require_labels, scored
from largebatch.losses.left_out import require_nothing_left_out
from largebatch.losses.module_loss import ModuleLoss
from largebatch.losses.protocol import Loss, counted_per_sample, units_are_fixed
from largebatch.losses.regression import OutputIsLoss, SquaredError
from largebatch.losses.shift import require_decoder_inputs, with_shift

__all__ = [
    "CrossEntropy",
    "LabelRule",
    "Loss",
    "ModuleLoss",
    "NextToken",
    "OutputIsLoss",
    "SquaredError",
    "counted_per_sample",
    "label_rule",
    "require_decoder_inputs",
    "require_labels",
    "require_nothing_left_out",
    "scored",
    "units_are_fixed",
    "with_shift",
]
