"""Optimizers for large batches: LARS, LAMB, Muon with AdamW, and the parameter groups all of them take."""

from largebatch.optim.follow_batch import follow_batch
from largebatch.optim.geometry import OptimizerGeometry
from largebatch.optim.lamb import LAMB
from largebatch.optim.lars import LARS
from largebatch.optim.learning_rates import keep_lr_ratios, lr_factors, set_lr
from largebatch.optim.muon import MuonWithAdamW
from largebatch.optim.parameter_groups import parameter_groups, parameters_by_name
from largebatch.optim.presets import LAMB_PRESETS, LARS_PRESETS
from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.optim.schedule_lr import ScheduleLR
from largebatch.optim.telemetry import (
    StepTelemetry,
    TensorStep,
    row_of_layers,
    summary_of,
    tensor_steps,
    weights_of,
)
from largebatch.optim.trust_ratio import l2_norm, trust_ratio

__all__ = [
    "LAMB",
    "LAMB_PRESETS",
    "LARS",
    "LARS_PRESETS",
    "MuonWithAdamW",
    "OptimizerGeometry",
    "ScaledGroups",
    "ScheduleLR",
    "StepTelemetry",
    "TensorStep",
    "follow_batch",
    "keep_lr_ratios",
    "l2_norm",
    "lr_factors",
    "parameter_groups",
    "parameters_by_name",
    "row_of_layers",
    "set_lr",
    "summary_of",
    "tensor_steps",
    "trust_ratio",
    "weights_of",
]
